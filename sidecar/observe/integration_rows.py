"""
Counts of single integrations: a bounded number of rows, held by the integrations with the most traffic.

A row is in the same memory as all other counts of the process, so a decision costs one increment, and a
supervisor reads the rows of its workers. While rows are free, each integration gets one at its first
decision. Then an integration without a row takes the row of a quieter one, if it had more than twice its
traffic since the last `rank`. Decisions about integrations without a row are counted by reason only.
"""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.domain.decisions import Reason
from sidecar.domain.snapshot import CompiledIntegration
from sidecar.observe.rows import Rows, RowTable

RESULTS = ("allowed", "limited", "refused", "unavailable")
"""The label values by which decisions about an integration are counted, in the order of a row."""
RESET_AT_US, LIMIT_RPM, SPAN_US = range(len(RESULTS), len(RESULTS) + 3)
"""Places in a row of: when the bucket is full again (0 = not known), the limit, the bucket's refill time."""
ROW_COUNTS = len(RESULTS) + 3
ROWS_MAX = 1_000
ROWS_PER_LISTED = 4
"""Rows of a process for each series that is exported: the workers of a sidecar may rank integrations
differently."""
LISTED_MAX = ROWS_MAX // ROWS_PER_LISTED
LISTED_DEFAULT = 50
CHALLENGE_FACTOR = 2
"""An integration must have this many times the traffic of the one that it replaces, to prevent flapping."""
UNIDENTIFIED = frozenset(reason for reason in Reason if reason.is_credential_fault) | {Reason.KEY_FLOOD}
"""Reasons of decisions about callers who are no known integration."""


def result_of(reason: Reason) -> str:
    """The label value under which a decision with *reason* is counted."""
    if reason is Reason.OK:
        return "allowed"
    if reason is Reason.RATE_LIMITED:
        return "limited"
    return "unavailable" if reason in (Reason.STORE_UNAVAILABLE, Reason.OVERLOADED) else "refused"


class IntegrationRows:
    """The rows of one deciding process."""

    __slots__ = ("_candidates", "_owners", "_rows_by_id", "_rows_max", "_seen", "_table", "_values")

    def __init__(self, table: RowTable, values: memoryview, listed_max: int = LISTED_DEFAULT) -> None:
        """Write to *values* at the places of *table*; *listed_max* 0 = count no single integration."""
        self._table = table
        self._values = values
        self._rows_max = min(max(0, table.rows_max - 1), listed_max * ROWS_PER_LISTED)
        self._rows_by_id: dict[str, int] = {}
        self._owners: list[CompiledIntegration | None] = []
        self._candidates: dict[str, int] = {}
        self._seen: list[int] = []

    @property
    def held(self) -> int:
        """How many integrations and candidates are remembered: at most two for each row."""
        return len(self._rows_by_id) + len(self._candidates)

    def slot_of(self, integration: CompiledIntegration) -> int:
        """The slot of the row's first count, kept in `integration.count_slot`; 0 = it has no row."""
        row = self._rows_by_id.get(integration.id)
        if row is None:
            if len(self._owners) >= self._rows_max:
                self._note(integration.id)
                return 0
            row = len(self._owners)
            self._owners.append(None)
            self._seen.append(0)
            self._name(row, integration.id)
        former = self._owners[row]
        if former is not None:
            former.count_slot = 0
        self._owners[row] = integration
        slot = self._table.slot(row)
        self._values[slot + LIMIT_RPM] = integration.limit_rpm
        self._values[slot + SPAN_US] = integration.record.quota.span_us
        integration.count_slot = slot
        return slot

    def rank(self) -> None:
        """Give the rows of quiet integrations to busier ones; call it every few seconds."""
        counts = [self._decisions(row) for row in range(len(self._owners))]
        recent = [count - seen for count, seen in zip(counts, self._seen, strict=True)]
        self._seen = counts
        quietest = sorted(range(len(recent)), key=recent.__getitem__)
        busiest = sorted(self._candidates.items(), key=_by_count, reverse=True)
        self._candidates = {}
        for row, (id, count) in zip(quietest, busiest, strict=False):
            if count <= CHALLENGE_FACTOR * recent[row]:
                break
            self._hand_over(row, id)

    def _decisions(self, row: int) -> int:
        slot = self._table.slot(row)
        return sum(self._values[slot + place] for place in range(len(RESULTS)))

    def _note(self, id: str) -> None:
        """Count a decision about an integration without a row."""
        seen = self._candidates.get(id)
        if seen is not None:
            self._candidates[id] = seen + 1
        elif len(self._candidates) < self._rows_max:
            self._candidates[id] = 1

    def _hand_over(self, row: int, id: str) -> None:
        owner = self._owners[row]
        if owner is not None:
            owner.count_slot = 0
        self._owners[row] = None
        self._seen[row] = 0
        former = next(known for known, place in self._rows_by_id.items() if place == row)
        del self._rows_by_id[former]
        self._table.clear(self._values, row)
        self._name(row, id)

    def _name(self, row: int, id: str) -> None:
        self._rows_by_id[id] = row
        self._table.name(self._values, row, (id,))


def _by_count(candidate: tuple[str, int]) -> int:
    return candidate[1]


def merged(sources: Sequence[Rows]) -> dict[str, list[int]]:
    """
    Add up the rows of all processes by integration.

    Reset time, limit and refill time are those of the process with the latest reset time.
    """
    total: dict[str, list[int]] = {}
    for rows in sources:
        for (id,), counts in rows.items():
            found = total.get(id)
            if found is None:
                total[id] = list(counts)
                continue
            for place in range(len(RESULTS)):
                found[place] += counts[place]
            if counts[RESET_AT_US] > found[RESET_AT_US]:
                found[RESET_AT_US:] = counts[RESET_AT_US:]
    return total
