"""What a changed record or other routes would have decided about logged requests."""

from __future__ import annotations

from dataclasses import replace

from sidecar.domain.cidr import parse_cidr
from sidecar.domain.decisions import Reason
from sidecar.domain.integrations import Integration
from sidecar.domain.replay import CHANGES_MAX, HOUR_US, ChangeKind, LoggedRequest, Replay
from sidecar.domain.scopes import Scope
from tests.building import CLIENT_IP, NOW_US, SECOND_US, make_integration, make_policy

FOREIGN = "192.0.2.1"
PASSED = LoggedRequest(
    decision_id="d0",
    time=NOW_US,
    credential="key1",
    reason="ok",
    would_deny="",
    method="GET",
    path="/v1/orders/42",
    scope="orders:read",
    client_address=CLIENT_IP,
    route="/v1/orders/{id}",
    limit_rpm=60,
    reset_at=NOW_US + SECOND_US,
    store_time=NOW_US,
    fallback="",
    generation=1,
)


def passed(seconds: float, **values: object) -> LoggedRequest:
    """An allowed request *seconds* after the first, from a bucket that was full."""
    at_us = NOW_US + round(seconds * SECOND_US)
    row = PASSED._replace(time=at_us, store_time=at_us, reset_at=at_us + SECOND_US)
    return row._replace(decision_id=f"d{seconds}", **values)


def refused(seconds: float, reason: Reason, **values: object) -> LoggedRequest:
    """A request that was refused for *reason*, and read a full bucket."""
    row = passed(seconds, reason=reason.label)
    return row._replace(**{"reset_at": row.store_time, **values})


def replayed(record: Integration, *rows: LoggedRequest) -> Replay:
    """A replay of *rows* by *record*."""
    replay = Replay(make_policy(), record)
    replay.run(sorted(rows, key=replay.sort_key))
    return replay


def test_replay__a_lower_limit_refuses() -> None:
    """Who, when, how often and in which hour; a refused request takes nothing, so that some pass again."""
    rows = [passed(number * 2.0) for number in range(30)]
    rows += [passed(7_200 + number * 2.0, credential="key2") for number in range(3)]
    replay = replayed(make_integration(rate_limit_rpm=15, burst=1), *rows)
    assert (replay.rows, replay.newly_refused, replay.newly_admitted) == (33, 16, 0)
    first, second = replay.changes.items()
    assert first[0] == ChangeKind("ok", "rate_limited", "key1")
    assert second[0] == ChangeKind("ok", "rate_limited", "key2")
    assert (first[1].count, first[1].first_us, first[1].first_decision_id) == (15, NOW_US + 2_000_000, "d2.0")
    assert first[1].last_us == NOW_US + 58 * SECOND_US
    assert first[1].worst_hour == (NOW_US - NOW_US % HOUR_US, 15)
    assert (replay.refused_logged, replay.refused_replayed) == (0, 16)


def test_replay__a_higher_limit_admits() -> None:
    """What the log refused passes, and takes tokens from those after it."""
    # A limit of 60 with a burst of 1: the second request of a second was refused, and left the bucket alone.
    rows = [passed(0), *(refused(0.1, Reason.RATE_LIMITED, reset_at=NOW_US + SECOND_US) for _ in range(3))]
    assert replayed(make_integration(burst=1), *rows).changes == {}
    replay = replayed(make_integration(burst=3), *rows)
    ((kind, count),) = replay.changes.items()
    assert (kind, count.count) == (ChangeKind("rate_limited", "ok", "key1"), 2)
    assert replay.newly_admitted == 2


def test_replay__scopes_and_allowlist() -> None:
    """A removed scope and an allowlist refuse; a granted scope admits; another reason is a change, too."""
    rows = [
        passed(0),
        passed(60, client_address=FOREIGN),
        refused(
            120, Reason.SCOPE_MISSING, path="/v1/finance/1", scope="finance:read", route="/v1/finance/**"
        ),
    ]
    listed = make_integration(allowlist=[CLIENT_IP])
    assert list(replayed(listed, *rows).changes) == [ChangeKind("ok", "ip_not_allowed", "key1")]
    record = replace(make_integration(), scopes=frozenset({Scope("finance", "read")}))
    replay = replayed(record, *rows)
    assert [(kind.was, kind.becomes, count.count) for kind, count in replay.changes.items()] == [
        ("ok", "scope_missing", 2),
        ("scope_missing", "ok", 1),
    ]
    moved = replace(listed, ip_allowlist=(parse_cidr(FOREIGN),))
    other = refused(0, Reason.IP_NOT_ALLOWED, client_address=FOREIGN, path="/nowhere", scope="", route="")
    assert list(replayed(moved, other).changes) == [ChangeKind("ip_not_allowed", "route_unknown", "key1")]


def test_replay__a_stated_scope_is_kept() -> None:
    """Rows without a route were decided by the scope that the proxy stated; routes do not matter."""
    rows = [passed(0, path="/elsewhere", route=""), passed(60, path="/elsewhere", route="", scope="")]
    assert replayed(make_integration(), *rows).changes == {}
    assert replayed(make_integration(scopes=()), *rows).newly_refused == 1


def test_replay__what_the_log_does_not_have_is_kept() -> None:
    """A failed store, a suspension, a long path, a wrong scope of the proxy: the logged outcome stays."""
    rows = [
        passed(0, store_time=0, fallback="allow"),
        passed(1, fallback="local", reason="rate_limited"),
        refused(2, Reason.STORE_UNAVAILABLE, store_time=0, fallback="deny"),
        refused(3, Reason.INTEGRATION_SUSPENDED),
        refused(4, Reason.URI_TOO_LONG, path="/" + 2_000 * "a", scope="", route=""),
        refused(5, Reason.ROUTE_MISCONFIGURED, scope="", route=""),
    ]
    replay = replayed(make_integration(), *rows)
    assert (replay.rows, replay.kept, replay.changes) == (6, 6, {})
    # The allowlist comes before the store, so the log has everything for it.
    assert replayed(make_integration(allowlist=[FOREIGN]), rows[0]).newly_refused == 1


def test_replay__buckets_of_their_own() -> None:
    """Sidecars with embedded stores do not share tokens."""
    rows = [passed(0, bucket="a"), passed(0, bucket="b")]
    assert replayed(make_integration(burst=1), *rows).changes == {}
    assert replayed(make_integration(burst=1), *(row._replace(bucket="") for row in rows)).newly_refused == 1


def test_replay__counts_other_versions_of_the_record() -> None:
    """The reader sees that some differences come from changes that were made since."""
    assert (
        replayed(make_integration(generation=2), passed(0), passed(60, generation=2)).other_generations == 1
    )


def test_replay__kinds_of_changes_are_bounded() -> None:
    """Beyond the bound, changes are only counted."""
    rows = [passed(60 * number, credential=f"key{number}") for number in range(CHANGES_MAX + 2)]
    replay = replayed(make_integration(allowlist=[FOREIGN]), *rows)
    assert len(replay.changes) == CHANGES_MAX
    assert (replay.uncounted_changes, replay.newly_refused) == (2, CHANGES_MAX + 2)
