"""Reads the counts of an integration's requests from the rollups of a decision log."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from sidecar.domain.activity import (
    ADDRESS_DAYS,
    BASELINE_WEEKS,
    DAY_US,
    HISTORY_DAYS,
    LISTED_MAX,
    WEEK_US,
    Activity,
    KeyCount,
    NewAddresses,
    Total,
)
from sidecar.stores.decisions.filters import Value, timestamp
from sidecar.stores.decisions.queries import DecisionLogError
from sidecar.stores.decisions.reader import DecisionReader, rows_segments

COUNTS_MAX = 50_000
"""Counts that one answer is made of; past it, those of the networks with the fewest requests are left out."""

UNKNOWN_CALLERS = ""
"""The integration of requests without a valid API key."""

_HOUR = "hour"
_INVALID_KEYS = "invalid_keys"

_QUERY = f"""
WITH mine AS NOT MATERIALIZED (SELECT * FROM rollups
    WHERE integration = $integration AND hour >= $history AND hour < $end),
counts AS (
    SELECT kind, key, reason,
        coalesce(sum(count) FILTER (WHERE hour >= $window), 0)::BIGINT AS requests,
        coalesce(sum(count) FILTER (WHERE hour >= $baseline AND hour < $window), 0)::BIGINT AS baseline,
        epoch_us(min(first_seen)) AS first_seen_us, epoch_us(max(last_seen)) AS last_seen_us
    FROM mine GROUP BY ALL
    HAVING requests > 0 OR kind IN ('reason', 'scope', 'credential')
)
SELECT * FROM counts
UNION ALL
SELECT '{_HOUR}', epoch_us(hour)::VARCHAR, '', sum(count)::BIGINT, 0, 0, 0
FROM mine WHERE kind = 'reason' AND hour >= $baseline GROUP BY hour
UNION ALL
SELECT '{_INVALID_KEYS}', key, reason, sum(count)::BIGINT, 0, 0, 0
FROM rollups
WHERE integration = '' AND kind = 'address' AND reason = 'key_flood' AND hour >= $window AND hour < $end
AND key IN (SELECT key FROM counts WHERE kind = 'address') GROUP BY ALL
ORDER BY kind = 'address', requests DESC LIMIT {COUNTS_MAX}
"""  # noqa: S608


_NEW_ADDRESSES = f"""
WITH addresses AS (
    SELECT client_address, count(*) AS requests, count(*) FILTER (WHERE reason <> 'ok') AS refused,
        epoch_us(min(time)) AS first_seen_us, epoch_us(max(time)) AS last_seen_us
    FROM decisions WHERE integration = ? AND time >= ? AND time < ? AND client_address <> ''
    GROUP BY client_address HAVING min(time) >= ?
)
SELECT *, count(*) OVER () FROM addresses ORDER BY requests DESC, client_address LIMIT {LISTED_MAX}
"""  # noqa: S608


def read_activity(
    reader: DecisionReader,
    integration: str,
    from_us: int,
    to_us: int,
    created_at_us: int,
    deadline_s: float,
) -> Activity:
    """
    Return the counts of *integration* from *from_us*, a full hour, to *to_us*.

    *created_at_us* is when the integration was created, 0 = unknown.

    Raises:
        DecisionLogTimeoutError: it took longer than *deadline_s*.
        DecisionLogError: the log cannot be read, or the query needs too much memory.
    """
    ends_at = monotonic() + deadline_s
    begins_us = reader.begins_us()
    history_us = from_us - HISTORY_DAYS * DAY_US
    times = {
        "history": history_us,
        "baseline": from_us - BASELINE_WEEKS * WEEK_US,
        "window": from_us,
        "end": to_us,
    }
    rows = reader.rollup_sql(
        _QUERY,
        {"integration": integration, **{name: timestamp(max(0, at_us)) for name, at_us in times.items()}},
        deadline_s,
        max(0, history_us),
        to_us,
        [integration, UNKNOWN_CALLERS],
    )
    counts = [KeyCount(*row) for row in rows]
    first_seen_us = min((count.first_seen_us for count in counts if count.first_seen_us), default=to_us)
    return Activity(
        from_us,
        to_us,
        # A registry that was loaded from another one has integrations that are older than their records.
        max(min(created_at_us, first_seen_us), begins_us if begins_us is not None else to_us),
        {int(count.key): count.requests for count in counts if count.kind == _HOUR},
        [count for count in counts if count.kind not in (_HOUR, _INVALID_KEYS)],
        {count.key: count.requests for count in counts if count.kind == _INVALID_KEYS},
        is_complete=len(counts) < COUNTS_MAX,
        new_addresses=_new_addresses(reader, integration, from_us, to_us, ends_at - monotonic()),
    )


def _new_addresses(
    reader: DecisionReader, integration: str, from_us: int, to_us: int, deadline_s: float
) -> NewAddresses:
    """Return the addresses of the window that older rows do not have; a failure is no failure of the rest."""
    since_us = max(0, from_us - ADDRESS_DAYS * DAY_US)
    try:
        begins_us = reader.begins_us(rows_segments)
        parameters: list[Value] = [integration, timestamp(since_us), timestamp(to_us), timestamp(from_us)]
        rows = reader.sql(_NEW_ADDRESSES, parameters, deadline_s, since_us, to_us)
    except DecisionLogError as error:
        return NewAddresses(since_us, problem=str(error))
    known_since_us = max(since_us, to_us if begins_us is None else begins_us)
    return NewAddresses(known_since_us, rows[0][-1] if rows else 0, tuple(Total(*row[:-1]) for row in rows))


def read_scope_uses(
    reader: DecisionReader, integrations: Sequence[str], from_us: int, to_us: int, deadline_s: float
) -> dict[str, dict[str, int]]:
    """
    Return when each of *integrations* last used each scope from *from_us* to *to_us*, in µs since the epoch.

    A request that was refused with scope_missing does not use the scope.

    Raises:
        DecisionLogTimeoutError: it took longer than *deadline_s*.
        DecisionLogError: the log cannot be read, or the query needs too much memory.
    """
    query = (
        "SELECT integration, key, epoch_us(max(last_seen)) FROM rollups"
        " WHERE kind = 'scope' AND reason <> 'scope_missing' AND last_seen >= $start GROUP BY ALL"
    )
    uses: dict[str, dict[str, int]] = {integration: {} for integration in integrations}
    start = {"start": timestamp(max(0, from_us))}
    for integration, scope, at_us in reader.rollup_sql(
        query, start, deadline_s, max(0, from_us), to_us, integrations
    ):
        uses[integration][scope] = at_us
    return uses
