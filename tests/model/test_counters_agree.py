"""The spec, the embedded counters and real Redis with count.lua agree step by step, whatever happens."""

from __future__ import annotations

import secrets
import socket
from typing import Any

import hiredis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sidecar.domain.rate_limits.counters import (
    HITS_MAX,
    Counter,
    CountersTaken,
    CounterTake,
    bucket_used,
    take_counters,
)
from sidecar.stores.embedded_counters import EmbeddedCounterStore
from sidecar.stores.redis.count_call import CounterCall, encode_counts, settle_counts
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.resp import pack
from sidecar.stores.redis.scripts import COUNT
from sidecar.stores.redis.take_call import Group
from tests.redis_servers import shared
from tests.waiting import PATIENCE_S

NOW_US = 1_795_000_000_000_000
DOMAIN = "shop"
UNITS_S = (1, 60, 3_600, 86_400, 604_800, 2_592_000, 31_536_000)

limits = st.one_of(
    st.integers(0, 12), st.sampled_from((999, 4_000_000_000, HITS_MAX, 2_592_000, 7_919, 86_401))
)
hits = st.one_of(st.integers(0, 5), st.sampled_from((1_000, 3_999_999_999, HITS_MAX)))
waits_us = st.one_of(
    st.integers(0, 1_000_000),
    st.integers(0, 120_000_000),
    st.integers(0, 10**13),
    st.sampled_from((1, 1_000_000, 3_600_000_000, 86_400_000_000, 31_536_000_000_000)),
)


@st.composite
def takes(draw: st.DrawFn) -> CounterTake:
    """Hits from one of a few counters; the limit of a counter may differ from call to call."""
    unit_s = draw(st.sampled_from(UNITS_S))
    is_bucket = draw(st.booleans())
    counts_refused = not is_bucket and draw(st.booleans())
    kind = "b" if is_bucket else "w"
    return CounterTake(
        f"{kind}{unit_s}{draw(st.sampled_from('xy'))}",
        unit_s,
        draw(limits),
        draw(hits),
        is_bucket=is_bucket,
        is_quota=draw(st.sampled_from((False, False, True))),
        is_shadow=draw(st.sampled_from((False, False, False, True))),
        counts_refused=counts_refused,
    )


class CounterPlayer:
    """Real Redis with count.lua; keys never expire by themselves, their TTLs are looked at."""

    def __init__(self, port: int, prefix: str) -> None:
        """Connect."""
        self.keys = KeySpace(prefix, 1)
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._reader = hiredis.Reader()
        self.values: dict[str, bytes | None] = {}
        self.ttls_ms: dict[str, int] = {}
        self.ask(COUNT.load)

    def ask(self, command: bytes) -> Any:
        """The reply to one command."""
        self._socket.sendall(command)
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(65_536))
        if isinstance(reply, Exception):
            raise reply
        return reply

    def play(self, calls: list[list[CounterTake]], now_us: int) -> list[CountersTaken]:
        """The outcome of calls that meet in one script call."""
        outcomes: list[CountersTaken] = []
        groups = []
        for call in calls:
            group = Group(CounterCall(DOMAIN, call, self.keys))
            group.waiting.append((1, 0.0, outcomes.append))
            groups.append(group)
        errors: list[Exception] = []
        names = sorted({take.key for call in calls for take in call})
        settle_counts(groups, self._transact(encode_counts(groups, now_us), names), errors.append)
        assert not errors
        return outcomes

    def _transact(self, call: bytes, names: list[str]) -> Any:
        """The reply to a script call; what it wrote is looked at and made permanent before it can expire."""
        commands = [call]
        for name in names:
            key = self.keys.counter(DOMAIN, name)
            commands += [pack("GET", key), pack("PTTL", key), pack("PERSIST", key)]
        self.ask(pack("MULTI"))
        for command in commands:
            assert self.ask(command) == b"QUEUED"
        reply, *looks = self.ask(pack("EXEC"))
        self.values = dict(zip(names, looks[::3], strict=True))
        self.ttls_ms = dict(zip(names, looks[1::3], strict=True))
        return reply

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()


class CounterModel(RuleBasedStateMachine):
    """Three players, one table."""

    def __init__(self) -> None:
        """Unused counters."""
        super().__init__()
        self.now_us = NOW_US
        self.spec: dict[str, Counter] = {}
        self.units_s: dict[str, int] = {}
        self.embedded = EmbeddedCounterStore(lambda: self.now_us)
        self.redis = CounterPlayer(shared().standalone.port, f"counters-{secrets.token_hex(4)}:")

    def teardown(self) -> None:
        """Leave no key and no connection."""
        for key in self.spec:
            self.redis.ask(pack("DEL", self.redis.keys.counter(DOMAIN, key)))
        self.redis.close()

    @rule(calls=st.lists(st.lists(takes(), min_size=1, max_size=4), min_size=1, max_size=3))
    def take(self, calls: list[list[CounterTake]]) -> None:
        """Calls that meet in a batch have the same outcome everywhere, one after another."""
        expected = []
        changed: dict[str, Counter] = {}
        for call in calls:
            taken, kept = take_counters(call, self.spec.get, self.now_us)
            self.spec.update(kept)
            changed.update(kept)
            self.units_s.update({take.key: take.unit_s for take in call})
            expected.append(taken)
            assert self.embedded.take_now(DOMAIN, call) == taken
        assert self.redis.play(calls, self.now_us) == expected
        for key, counter in changed.items():
            assert self.redis.values[key] == ":".join(map(str, counter)).encode()
            assert 0 <= self.redis.ttls_ms[key] <= 2 * self.units_s[key] * 1_000 + 1_000
            assert self.redis.ttls_ms[key] * 1_000 + PATIENCE_S * 1e6 >= self.remaining_us(key)

    def remaining_us(self, key: str) -> int:
        """For how long a counter is in use."""
        counter, unit_us = self.spec[key], self.units_s[key] * 1_000_000
        if len(counter) == 2:
            return (counter[0] + 1) * unit_us - self.now_us
        used, rest = bucket_used(counter, unit_us, self.now_us)
        return (used * unit_us + rest) // counter[3]

    @rule(wait_us=waits_us)
    def wait(self, wait_us: int) -> None:
        """Time passes."""
        self.now_us += wait_us

    @rule(step_us=waits_us)
    def step_clock_back(self, step_us: int) -> None:
        """The store's clock is set back."""
        self.now_us = max(1, self.now_us - step_us)

    @invariant()
    def buckets_are_bounded(self) -> None:
        """A bucket never owes more than its limit."""
        for key, counter in self.spec.items():
            if len(counter) == 4:
                used, rest = bucket_used(counter, self.units_s[key] * 1_000_000, self.now_us)
                assert (used, rest) <= (counter[3], 0)


CounterModel.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCountersAgree = CounterModel.TestCase
