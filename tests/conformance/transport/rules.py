"""
A rule of the wire: what a client says, and how a server of ours must take it.

Outcomes are words, so that a table of them can be read and compared:
`served` (gRPC status 0), `status N`, `http N`, `rst NAME`, `goaway NAME` (and closed), `closed`
(without a word), `no answer` (while another call on the same connection is served).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .wire import Wire

BYSTANDER = 201
"""The stream of a good call that shows whether the connection still serves."""


@dataclass(frozen=True)
class Rule:
    """
    One row.

    `say` speaks on a connection whose SETTINGS are exchanged, unless it `opens` by itself. `stream` is
    the one whose end counts. With `call_after`, a good call on that stream follows what was said.
    """

    name: str
    source: str
    expected: str
    say: Callable[[Wire], object]
    stream: int = 1
    call_after: bool = False
    opens: bool = False


def observe(wire: Wire, rule: Rule, expected: str) -> str:
    """
    Say what *rule* says and report the outcome.

    Where a stream ended alone, the connection must still serve; if not, the outcome says so.
    *expected* only decides how to wait: for `no answer` a bystander's answer ends the waiting.
    """
    if not rule.opens:
        wire.start()
    rule.say(wire)
    if rule.call_after:
        wire.request(rule.stream)
    if expected == "no answer":
        wire.request(BYSTANDER)
        wire.read_until(lambda: wire.stream(BYSTANDER).outcome or wire.stream(rule.stream).outcome)
        if wire.stream(BYSTANDER).outcome == "served" and wire.stream(rule.stream).outcome is None:
            return "no answer"
    outcome = wire.outcome(rule.stream)
    if outcome.startswith(("goaway", "closed")):
        return outcome
    wire.request(BYSTANDER)
    after = wire.outcome(BYSTANDER)
    return outcome if after == "served" else f"{outcome}, then {after}"
