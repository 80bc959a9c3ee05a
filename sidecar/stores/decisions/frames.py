"""
Frames: how a worker hands decisions to the process that writes them.

A frame is one message of a socket that keeps message borders. It has rows as the deciding process found
them; everything that can be done later, such as formatting addresses and cutting off queries, is done in
`decision_row`. Both ends are processes of one sidecar, so the serialization is Python's own, the fastest.
"""

from __future__ import annotations

import marshal
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from sidecar.domain.cidr import format_address
from sidecar.domain.decision_rows import DecisionRow
from sidecar.domain.decisions import Reason

FRAME_BYTES_MAX = 1 << 17
"""The longest frame: a socket refuses messages that exceed its buffer, by default 208 KiB on Linux."""
TEXT_CHARS_MAX = 256
"""Characters of ids and methods that are recorded."""
PATH_CHARS_MAX = 2_048
"""Characters of a path, query included, that are handed over."""
ADDRESSES_MAX = 4_096
"""Clients whose address is kept as text: making it takes a third of the time of a row."""
FORMAT = 4
"""The version of marshal that writes equal objects once."""

RawRow: TypeAlias = tuple[Any, ...]
"""
A decision as a worker hands it over: time in ns, decision id, x-request-id or None, traceparent or None,
`CompiledCredential.log_fields` or None, label of the reason, label of would_deny, method, path with query,
`Route.log_fields` or None, packed client address or None, remaining, reset_at_us, store time in µs, wait in
µs, fallback policy, limit of the fallback or -1, dialect, latency in ns.
"""


class Counts(NamedTuple):
    """
    Numbers of decisions of one process since its start.

    `allowed` and `refused` were sent as rows; `dropped_allowed` and `dropped_refused` found no room;
    `sampled` are allowed requests that `sample_allowed` left out.
    """

    allowed: int = 0
    refused: int = 0
    dropped_allowed: int = 0
    dropped_refused: int = 0
    sampled: int = 0


class Kind(IntEnum):
    """What a frame is."""

    ROWS = 0
    """One of many."""
    LAST = 1
    """The last one of its process, which is about to end: it has sent everything."""
    ENDED = 2
    """From the supervisor: the process has ended; `allowed` and `refused` count all decisions of its life."""


class Frame(NamedTuple):
    """
    The rows of one process, and its counts including these rows.

    `process` is the unique name of the process, `sent_us` the time of sending; every decision before
    `settled_us` is in `counts`.
    """

    worker: int
    process: str
    sent_us: int
    settled_us: int
    counts: Counts
    rows: list[RawRow] = []
    kind: Kind = Kind.ROWS

    def packed(self) -> bytes:
        """Return the message."""
        worker, process, sent_us, settled_us, counts, rows, kind = self
        return marshal.dumps((worker, process, sent_us, settled_us, tuple(counts), rows, int(kind)), FORMAT)


def read_frame(message: bytes) -> Frame:
    """
    Parse a message of `Frame.packed`.

    Raises:
        ValueError: it is not a frame.
    """
    try:
        worker, process, sent_us, settled_us, counts, rows, kind = marshal.loads(message)  # noqa: S302
        return Frame(worker, process, sent_us, settled_us, Counts(*counts), rows, Kind(kind))
    except (EOFError, TypeError, ValueError) as error:
        raise ValueError(f"not a frame of {len(message)} bytes: {error}") from error


def is_allowed(row: RawRow) -> bool:
    """Whether *row* is of an allowed request."""
    return bool(row[_REASON] == _OK)


_REASON, _OK = 5, Reason.OK.label
_address_text = lru_cache(ADDRESSES_MAX)(format_address)
_VERDICTS = {reason.label: reason.verdict.value for reason in Reason}


def decision_row(raw: RawRow, worker: int) -> DecisionRow:
    """
    Return the row of the log for *raw* of *worker*.

    The path loses its query, ids are cut to TEXT_CHARS_MAX, and the trace id is taken from traceparent.
    """
    (
        time_ns, decision_id, request_id, traceparent, caller, reason, would_deny, method, path, route,
        address, remaining, reset_at_us, store_us, wait_us, fallback, fallback_rpm, dialect, latency_ns,
    ) = raw  # fmt: skip
    integration, credential, limit_rpm, generation = caller or ("", "", 0, 0)
    scope, route_path = route or ("", "")
    if remaining == -1:
        limit_rpm = 0
    elif fallback_rpm != -1:
        limit_rpm = fallback_rpm
    return (
        time_ns // 1_000,
        decision_id,
        "" if request_id is None else request_id[:TEXT_CHARS_MAX],
        _trace_id(traceparent),
        integration,
        credential,
        _VERDICTS[reason],
        reason,
        would_deny,
        method[:TEXT_CHARS_MAX],
        path.partition("?")[0],
        scope,
        _address_text(address) if address else "",
        route_path,
        remaining,
        limit_rpm,
        reset_at_us,
        store_us,
        wait_us,
        fallback,
        dialect,
        worker,
        min(latency_ns // 1_000, 2**31 - 1),
        generation,
    )


def _trace_id(traceparent: str | None) -> str:
    """
    Return the trace id of a traceparent header, '' = none (W3C Trace Context, 3.2).

    >>> _trace_id("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    '4bf92f3577b34da6a3ce929d0e0e4736'
    """
    parts = traceparent.split("-", 3) if traceparent else ()
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""
