"""A replay of the unchanged record repeats the log exactly, wherever it begins."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.api_keys import NewApiKey
from sidecar.domain.enforcement import Rule
from sidecar.domain.integrations import Integration
from sidecar.domain.policy import AccessRequest
from sidecar.domain.replay import LoggedRequest, Replay
from tests.building import CLIENT_IP, ManualClock, make_decider, make_integration, make_key, make_policy
from tests.replaying import logged
from tests.unit.services.test_decider import Answers

KEY = make_key()
POLICY = make_policy()
ADDRESSES = (CLIENT_IP, "192.0.2.1", "2001:db8::1", "")
TARGETS = (
    ("GET", "/v1/orders/42?a=b"),
    ("GET", "/v1/orders/43"),
    ("POST", "/v1/orders"),
    ("GET", "/v1/finance/2"),
    ("GET", "/v1/status"),
    ("PUT", "/v1/status"),
    ("GET", "/nowhere"),
    ("GET", "/v1//x"),
)
REQUESTS = st.lists(
    st.tuples(
        st.sampled_from((0, 0, 1, 90_000, 1_000_000, 5_000_000)),
        st.sampled_from(TARGETS),
        st.sampled_from((None, None, "none", "orders:read", "finance:read")),
        st.sampled_from(ADDRESSES),
    ),
    min_size=1,
    max_size=40,
)
RECORDS = st.builds(
    lambda rpm, burst, allowlist, shadow: make_integration(
        KEY, rate_limit_rpm=rpm, burst=burst, allowlist=allowlist, shadow=shadow
    ),
    st.sampled_from((7, 60, 600)),
    st.integers(1, 4),
    st.sampled_from(((), (CLIENT_IP, "2001:db8::/32"))),
    st.frozensets(st.sampled_from(Rule)),
)


Step = tuple[int, tuple[str, str], str | None, str]


def recorded(record: Integration, requests: list[Step], key: NewApiKey = KEY) -> list[LoggedRequest]:
    """The rows of a real decider with an embedded store."""
    clock = ManualClock()
    decider = make_decider(record, policy=POLICY, clock=clock)
    rows = []
    for gap_us, (method, path), scope, peer in requests:
        clock.advance(us=gap_us)
        request = AccessRequest(method, path, {"x-api-key": key.api_key}.get, peer, scope)
        decision = decider.decide(request, None, Answers(), "")
        assert decision is not None
        rows.append(logged(request, decision, POLICY, clock.now_us))
    return rows


@given(RECORDS, REQUESTS, st.randoms(use_true_random=False), st.integers(0, 39))
def test_replay__repeats_the_log(
    record: Integration, requests: list[Step], random: Random, begin: int
) -> None:
    """Every reason, would-be reason and state of the bucket, from any row on, in whatever order rows come."""
    rows = recorded(record, requests)
    replay = Replay(POLICY, record)
    begin = rows[min(begin, len(rows) - 1)].time
    window = [row for row in rows if row.time >= begin]
    random.shuffle(window)
    for row in sorted(window, key=replay.sort_key):
        outcome = replay.decide(row)
        assert outcome.taken is not None
        would_deny = "" if outcome.would_deny is None else outcome.would_deny.label
        assert (outcome.reason.label, would_deny) == (row.reason, row.would_deny)
        assert (outcome.taken.reset_at_us, outcome.taken.at_us) == (row.reset_at, row.store_time)
