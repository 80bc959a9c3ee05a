"""The spec, the embedded store and real Redis with take.lua agree step by step, whatever happens."""

from __future__ import annotations

import secrets

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.domain.bucket import BucketSet, Level, Quota, Taken
from sidecar.stores.protocols import StoreFault
from tests.model.players import EmbeddedPlayer, OraclePlayer, RedisPlayer, SpecPlayer, Takes
from tests.redis_servers import shared

NOW_US = 1_764_000_000_000_000
OWNERS = ("acme", "globex")
GENERATIONS_MAX = 3

quotas = st.builds(
    Quota.per_minute,
    st.sampled_from((1, 7, 60, 600, 9_999, 10_000)),
    st.sampled_from((1, 2, 5, 100, 1_000_000)),
)
asked = st.one_of(st.integers(0, 6), st.sampled_from((100, 1_000_000, 2**31 - 1)))
costs = st.one_of(st.just(1), st.integers(1, 4), st.just(1_000_000))
waits_us = st.one_of(
    st.integers(0, 20_000),
    st.integers(0, 120_000_000),
    st.sampled_from((6_000, 6_001, 100_000, 1_000_000, 60_000_000, 10**13)),
)


@st.composite
def takes(draw: st.DrawFn) -> Takes:
    """Some equal takes from one to three buckets of an owner, by a record of some generation."""
    owner = draw(st.sampled_from(OWNERS))
    names = draw(st.lists(st.sampled_from("xyz"), min_size=1, max_size=3, unique=True))
    generation = draw(st.sampled_from((1, 1, 1, 2, 3)))
    keys = [f"{owner}/{name}" for name in names]
    buckets = BucketSet(owner, generation, keys, [draw(quotas) for _ in keys], draw(costs))
    wanted = draw(st.lists(asked, min_size=1, max_size=4))
    return buckets, wanted if sum(wanted) < 2**31 else [min(wanted)]


def stored_text(level: Level) -> bytes:
    """A level as take.lua stores it: in layout 2 only while something is owed."""
    text = f"{level.tat_us:016}:{level.interval_us}"
    if level.debt is not None:
        text += f":{level.debt.tat_us:016}:{level.debt.burst}"
    return text.encode()


class BucketModel(RuleBasedStateMachine):
    """Four players, one table."""

    def __init__(self) -> None:
        """Full buckets, records of generation 1."""
        super().__init__()
        self.spec = SpecPlayer()
        self.embedded = EmbeddedPlayer()
        self.oracle = OraclePlayer()
        self.redis = RedisPlayer(shared().standalone.port, f"model-{secrets.token_hex(4)}:")
        self.now_us = NOW_US
        self.real_us = 0
        for owner in OWNERS:
            self.change_record(owner, 1)

    def teardown(self) -> None:
        """Hold what was admitted against the bound; leave no key and no connection."""
        self.oracle.end()
        self.redis.close()

    @rule(call=st.lists(takes(), min_size=1, max_size=4))
    def take(self, call: list[Takes]) -> None:
        """A batch: every take has the same outcome everywhere, and none is over the exact bucket."""
        by_spec = self.spec.play(call, self.now_us)
        assert self.redis.play(call, self.now_us) == by_spec
        for (buckets, wanted), outcomes in zip(call, by_spec, strict=True):
            for count, outcome in zip(wanted, outcomes, strict=True):
                if isinstance(outcome, Taken):
                    assert self.embedded.take(buckets, count, self.now_us) == outcome
                    if count:
                        self.oracle.check(buckets, count, outcome, self.real_us)
                else:
                    assert outcome is StoreFault.SUPERSEDED

    @rule(wait_us=waits_us)
    def wait(self, wait_us: int) -> None:
        """Time passes."""
        self.now_us += wait_us
        self.real_us += wait_us

    @rule(step_us=waits_us)
    def step_clock_back(self, step_us: int) -> None:
        """The server's clock is set back; no real time passes."""
        self.now_us -= min(step_us, self.now_us - 1)
        self.oracle.clock_stepped_back()

    @rule(owner=st.sampled_from(OWNERS), generation=st.integers(1, GENERATIONS_MAX))
    def change_record(self, owner: str, generation: int) -> None:
        """The registry commits another record of an integration."""
        self.spec.generations[owner] = generation
        self.redis.set_generation(owner, generation)

    @precondition(lambda self: self.redis.written)
    @rule()
    def expire(self) -> None:
        """Redis drops the keys whose time is over; their buckets are full, so no answer differs."""
        for key, written in list(self.redis.written.items()):
            if self.now_us >= written.at_us + 1_000 * (written.ttl_ms + written.read_after_ms):
                level = self.spec.levels.pop(key)
                assert level.full_at_us <= self.now_us
                self.embedded.store.levels.pop(key)
                self.redis.remove(key.partition("/")[0], key)

    @rule()
    def flush(self) -> None:
        """An administrator empties the store: all buckets are full, and the records come back."""
        self.spec.levels.clear()
        self.oracle.end()
        self.embedded.reset()
        self.redis.flush()
        for owner in OWNERS:
            self.redis.set_generation(owner, self.spec.generations[owner])

    @rule()
    def lose_scripts(self) -> None:
        """SCRIPT FLUSH: the script is loaded again within the call."""
        self.redis.lose_scripts()

    @invariant()
    def stored_levels_agree(self) -> None:
        """Redis holds the very levels of the spec, each with a TTL that ends when nothing is left to know."""
        assert {key: stored_text(level) for key, level in self.spec.levels.items()} == {
            key: written.value for key, written in self.redis.written.items()
        }
        for key, written in self.redis.written.items():
            ahead_us = self.spec.levels[key].full_at_us - written.at_us
            assert 0 <= written.ttl_ms <= max(1, -(-ahead_us // 1_000))
            assert written.ttl_ms + written.read_after_ms >= ahead_us // 1_000


BucketModel.TestCase.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


TestBucketModel = BucketModel.TestCase
