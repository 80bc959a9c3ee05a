"""Simulates a changed record, or other routes, on the decision log: reads the rows and replays them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from sidecar.domain.decisions import Reason
from sidecar.domain.effective import in_force
from sidecar.domain.integrations import DETAILS, Integration, Status
from sidecar.domain.replay import ChangeCount, ChangeKind, LoggedRequest, Replay
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.sources.yaml_nodes import scalar_value
from sidecar.stores.decisions.filters import timestamp
from sidecar.stores.decisions.missing import MissingSpan
from sidecar.stores.decisions.reader import DecisionReader
from sidecar.stores.registry.file.registry_records import (
    INTEGRATION_KEYS,
    integration_from_dict,
    integration_to_dict,
    iso_time,
)

SLICE_ROWS = 50_000
"""Rows that are read at once, unless one minute has more."""
SKEW_US = 3_600_000_000
"""The largest difference between a sidecar's clock and the store's for which a row is found."""
QUERY_TIMEOUT_S = 60.0
MINUTE_US = 60_000_000

SHORT_KEYS = {"limit": "rate_limit_rpm", "allowlist": "ip_allowlist"}
"""Short names of fields, as the commands name them."""
SETTABLE = tuple(key for key in INTEGRATION_KEYS if key not in ("id", "name", "credentials", *DETAILS))
_LISTS = ("scopes", "ip_allowlist", "shadow")


class SettingError(ValueError):
    """A setting of a simulation names no field of a record."""


def parse_settings(texts: Iterable[str]) -> dict[str, object]:
    """
    Return the fields that texts such as `limit=120` set, by the keys of a registry file.

    Lists are separated by commas; nothing after '=' is the field's default.

    >>> parse_settings(["limit=120", "scopes=orders:read,crm:read", "allowlist="])
    {'rate_limit_rpm': 120, 'scopes': ['orders:read', 'crm:read'], 'ip_allowlist': []}

    Raises:
        SettingError: a text has no '=', or the key is not a field that can be simulated.
    """
    settings: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        key = SHORT_KEYS.get(name, name)
        if not equals or key not in SETTABLE:
            known = ", ".join((*SHORT_KEYS, *SETTABLE))
            raise SettingError(f"{text!r} must be KEY=VALUE with one of the keys {known}")
        if key in _LISTS:
            settings[key] = [item.strip() for item in value.split(",") if item.strip()]
        else:
            settings[key] = scalar_value(value) if value else None
    return settings


def changed_record(
    record: Integration, settings: Mapping[str, object], catalogue: ScopeCatalogue, now_us: int
) -> Integration:
    """
    Return *record* as in force at *now_us* with *settings*.

    A new limit ends a temporary raise, a new allowlist is on, and a suspended integration counts as active
    unless *settings* suspend it.

    Raises:
        FileFaultsError: a value is invalid.
    """
    plain = {**integration_to_dict(replace(record, credentials=())), **settings}
    named = integration_from_dict(plain, catalogue)
    fields: dict[str, Any] = {key: getattr(named, key) for key in settings}
    fields.setdefault("status", Status.ACTIVE)
    if "rate_limit_rpm" in settings or "burst" in settings:
        fields["limit_raise"] = None
    if "ip_allowlist" in settings:
        fields.setdefault("is_allowlist_enabled", True)
    return in_force(replace(record, credentials=(), **fields), now_us)


class LogSpan(NamedTuple):
    """The rows of one integration from *from_us* to *until_us*, which does not belong to the span."""

    integration_id: str
    from_us: int
    until_us: int


class Simulation(NamedTuple):
    """
    The result of a replay.

    `missing` are the spans in which the log lacks rows; `unread` is the number of rows whose store time is
    too far from their own time. If either is not empty, the result is incomplete.
    """

    span: LogSpan
    replay: Replay
    missing: list[MissingSpan]
    unread: int

    @property
    def is_complete(self) -> bool:
        """Whether every decision of the span was replayed."""
        return not self.missing and not self.unread


def simulate(reader: DecisionReader, span: LogSpan, replay: Replay, *, has_own_buckets: bool) -> Simulation:
    """
    Replay the rows of *span*; *has_own_buckets* = each process of a sidecar has its own buckets.

    Raises:
        DecisionLogError: the log cannot be read, or a query takes too long.
    """
    counts = _counts(reader, span)
    for from_us, until_us in _slices(counts):
        replay.run(_rows(reader, span, replay, from_us, until_us, has_own_buckets))
    missing = reader.missing(span.from_us, span.until_us - 1)
    return Simulation(span, replay, missing, sum(count for _, count in counts) - replay.rows)


_AT = "CASE WHEN epoch_us(store_time) > 0 THEN epoch_us(store_time) ELSE epoch_us(time) END"
_WHERE = "integration = ? AND time >= ? AND time < ?"
_TIMES = ("time", "reset_at", "store_time")
_COLUMNS = ", ".join(
    f"epoch_us({name})" if name in _TIMES else name for name in LoggedRequest._fields if name != "bucket"
)


def _counts(reader: DecisionReader, span: LogSpan) -> list[tuple[int, int]]:
    """The number of rows in each minute of the store's time that has any."""
    sql = (
        f"SELECT ({_AT}) // {MINUTE_US} * {MINUTE_US} AS minute, count(*) FROM decisions"  # noqa: S608
        f" WHERE {_WHERE} GROUP BY minute ORDER BY minute"
    )
    values = (span.integration_id, timestamp(span.from_us), timestamp(span.until_us))
    return [
        (int(minute), int(count))
        for minute, count in reader.sql(sql, values, QUERY_TIMEOUT_S, span.from_us, span.until_us)
    ]


def _slices(counts: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield spans of whole minutes with about SLICE_ROWS rows each, from and until."""
    begin_us = end_us = rows = 0
    for minute_us, count in counts:
        if rows and rows + count > SLICE_ROWS:
            yield begin_us, end_us
            rows = 0
        begin_us = begin_us if rows else minute_us
        end_us = minute_us + MINUTE_US
        rows += count
    if rows:
        yield begin_us, end_us


def _rows(
    reader: DecisionReader, span: LogSpan, replay: Replay, from_us: int, until_us: int, has_own_buckets: bool
) -> Iterator[LoggedRequest]:
    """Read one slice, in the order of `Replay.sort_key`."""
    bucket = "sidecar || '/' || worker" if has_own_buckets else "''"
    sql = f"SELECT {_COLUMNS}, {bucket} FROM decisions WHERE {_WHERE} AND {_AT} BETWEEN ? AND ?"  # noqa: S608
    first_us, last_us = max(span.from_us, from_us - SKEW_US), min(span.until_us, until_us + SKEW_US)
    values = (span.integration_id, timestamp(first_us), timestamp(last_us), from_us, until_us - 1)
    found = reader.sql(sql, values, QUERY_TIMEOUT_S, first_us, last_us)
    return iter(sorted(map(LoggedRequest._make, found), key=replay.sort_key))


def as_plain_data(simulation: Simulation, settings: Mapping[str, object]) -> dict[str, Any]:
    """Return *simulation* as the JSON object of `--json`."""
    span, replay = simulation.span, simulation.replay
    return {
        "integration": span.integration_id,
        "from": iso_time(span.from_us),
        "until": iso_time(span.until_us),
        "set": dict(settings),
        "in_shadow": list(replay.shadow),
        "is_complete": simulation.is_complete,
        "rows": replay.rows,
        "rows_kept": replay.kept,
        "rows_unread": simulation.unread,
        "rows_of_other_generations": replay.other_generations,
        "refused_logged": replay.refused_logged,
        "refused_simulated": replay.refused_replayed,
        "newly_refused": replay.newly_refused,
        "newly_admitted": replay.newly_admitted,
        "changes": [_change(kind, count) for kind, count in sorted_changes(replay)],
        "uncounted_changes": replay.uncounted_changes,
        "missing": [
            {**missing._asdict(), "from_us": iso_time(missing.from_us), "to_us": iso_time(missing.to_us)}
            for missing in simulation.missing
        ],
    }


def sorted_changes(replay: Replay) -> list[tuple[ChangeKind, ChangeCount]]:
    """Return the changes of *replay*: new refusals first, then new admissions, then other reasons."""
    ok = Reason.OK.label
    return sorted(
        replay.changes.items(),
        key=lambda item: (item[0].was != ok, item[0].becomes != ok, -item[1].count, item[0]),
    )


def _change(kind: ChangeKind, count: ChangeCount) -> dict[str, Any]:
    hour_us, hour_count = count.worst_hour
    return {
        "was": kind.was,
        "becomes": kind.becomes,
        "credential": kind.credential,
        "count": count.count,
        "first": iso_time(count.first_us),
        "last": iso_time(count.last_us),
        "worst_hour": iso_time(hour_us),
        "worst_hour_count": hour_count,
        "first_decision_id": count.first_decision_id,
    }
