"""Every rule of HTTP/2 and of gRPC over it, said by a raw client, whole and byte by byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from sidecar.transports.server import TransportLimits

from .background import BackgroundLoop
from .differences import OTHER_RULES, REFERENCE_DIFFERENCES, allowed
from .rules import Rule, observe
from .rules_grpc import GRPC_RULES, HEADER_LIST_BYTES_MAX, MESSAGE_BYTES_MAX
from .rules_http2 import HTTP2_RULES
from .served import TRANSPORTS, Served, Servers
from .wire import Wire

RULES = (*HTTP2_RULES, *GRPC_RULES)

WAYS = [
    ("fast", "whole"),
    ("fast", "byte by byte"),
    ("reference", "whole"),  # how grpc-core reads its bytes is not ours to prove
]


@pytest.fixture(scope="module")
def rule_servers(
    background: BackgroundLoop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Served]]:
    """One server of each transport, shared by all rules."""
    limits = TransportLimits(
        message_bytes_max=MESSAGE_BYTES_MAX,
        header_list_bytes_max=HEADER_LIST_BYTES_MAX,
        header_timeout_s=60.0,  # a busy machine needs seconds for 8,000 bytes that are sent one by one
    )
    with ExitStack() as stack:
        yield {
            transport: stack.enter_context(
                closing(Servers(transport, background, tmp_path_factory.mktemp(transport)))
            ).start(limits)
            for transport in TRANSPORTS
        }


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize(("transport", "feed"), WAYS, ids=[f"{transport} {feed}" for transport, feed in WAYS])
def test_rule__outcome(rule_servers: dict[str, Served], transport: str, feed: str, rule: Rule) -> None:
    """The client gets what the rule says, or what the table of differences says for this transport."""
    served = rule_servers[transport]
    byte_by_byte = feed == "byte by byte"
    right = allowed(transport, rule.name, rule.expected)
    with Wire(served.unix if byte_by_byte else served.tcp, byte_by_byte=byte_by_byte) as wire:
        assert observe(wire, rule, right[0]) in right, rule.source


def test_rules__names_are_unique() -> None:
    """A row of the table of differences can mean one rule only."""
    assert [name for name, count in Counter(rule.name for rule in RULES).items() if count > 1] == []


def test_differences__each_differs_from_a_rule() -> None:
    """No row of the table is left over: each names a rule, and allows something else than the rule."""
    rules = {**{rule.name: rule.expected for rule in RULES}, **OTHER_RULES}
    named = [(name, row) for row in REFERENCE_DIFFERENCES for name in row.names]
    assert {name for name, _ in named} <= set(rules)
    assert [name for name, row in named if rules[name] in row.observed] == []
