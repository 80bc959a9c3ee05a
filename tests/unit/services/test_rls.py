"""Envoy's ShouldRateLimit, from the bytes of a request to the bytes of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

import pytest
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse
from google.protobuf.json_format import MessageToDict

from sidecar.domain.rate_limits.counters import HITS_MAX, Counted, CountersTaken, CounterTake
from sidecar.domain.rate_limits.decisions import (
    DESCRIPTORS_MAX,
    ENTRIES_MAX,
    ENTRY_CHARS_MAX,
    LimitAnswer,
    LimitStyle,
    Status,
)
from sidecar.domain.rate_limits.rules import Limit, RateLimits, Unit
from sidecar.observe.metrics import Metrics
from sidecar.rpc.calls import UnaryMethod
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.services.rate_limiter import HITS, OVER, SHADOW, WITHIN, RateLimiter
from sidecar.services.rls import LIMIT_FIELDS_MAX, PLANS_MAX, RateLimitService, encode
from sidecar.stores.embedded_counters import EmbeddedCounterStore
from sidecar.stores.protocols import CountersDone, StoreFault
from tests.building import FakeCall, ManualClock, make_metrics
from tests.golden_rate_limits import read_limits, request_of, text_of

FILE = """
domain: shop
descriptors:
  - key: user
    rate_limit: {unit: day, requests_per_unit: 5, name: daily}
    metadata: {team: {name: core}, a: 1}
  - key: path
    value: /v1/*
    rate_limit: {unit: hour, requests_per_unit: 9}
    metadata: {team: {size: 3}, a: 2}
  - {key: dry, shadow_mode: true, rate_limit: {unit: hour, requests_per_unit: 1}}
  - {key: free, rate_limit: {unlimited: true}}
"""


class RecordingCounters:
    """A store whose every call needs a trip: it keeps them, and the test answers when it likes."""

    def __init__(self) -> None:
        """Begin with nothing pending."""
        self.pending: list[tuple[str, Sequence[CounterTake], float, CountersDone]] = []

    def take_now(self, domain: str, takes: Sequence[CounterTake]) -> None:
        """Never available at once."""

    def take_later(
        self, domain: str, takes: Sequence[CounterTake], timeout_s: float, done: CountersDone
    ) -> None:
        """Keep the call."""
        self.pending.append((domain, takes, timeout_s, done))


class ServedLimits:
    """The service, its limiter and its metrics."""

    def __init__(self, store: Any = None, limits: RateLimits | None = None, **style: Any) -> None:
        """Limit by `FILE`, on an embedded store."""
        self.metrics: Metrics = make_metrics()
        self.store = EmbeddedCounterStore(ManualClock()) if store is None else store
        self.limiter = RateLimiter(
            read_limits(FILE) if limits is None else limits, LimitStyle(**style), self.store, self.metrics
        )
        self.service = RateLimitService(self.limiter)

    def response(self, request: RateLimitRequest | str) -> Any:
        """The answer to a request, which must come at once."""
        message = request_of(request, "shop") if isinstance(request, str) else request
        answer = self.service.should_rate_limit(message.SerializeToString(), FakeCall())
        assert answer is not None
        return RateLimitResponse.FromString(answer)

    def refusal(self, request: RateLimitRequest | str) -> tuple[StatusCode, str]:
        """Code and text of a call that fails."""
        with pytest.raises(RpcError) as raised:
            self.response(request)
        return raised.value.code, raised.value.detail

    def hits(self, domain: str, rule: str) -> list[int]:
        """What was counted at a rule: within the limit, over it, over it in shadow mode."""
        row = self.metrics.row(HITS, domain, rule)
        return [self.metrics.values[row + place] for place in (WITHIN, OVER, SHADOW)]

    def calls(self, result: str) -> int:
        """Calls that ended so."""
        return self.metrics.value("sidecar_rate_limit_calls_total", result)


def test_methods__are_envoys() -> None:
    """The service is bound under the path that Envoy calls."""
    service = ServedLimits().service
    path = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
    assert service.methods() == (UnaryMethod(path, service.should_rate_limit),)


def test_answer__has_nothing_that_was_not_asked_for() -> None:
    """Headers and metadata are off; quota, raw body and request headers are never there."""
    response = ServedLimits().response("user=a")
    assert {field.name for field, _ in response.ListFields()} == {"overall_code", "statuses"}
    status = response.statuses[0]
    assert {field.name for field, _ in status.ListFields()} == {
        "code", "current_limit", "limit_remaining", "duration_until_reset",
    }  # fmt: skip


def test_answer__metadata() -> None:
    """The request, and what the rules that were not over hold: mappings merged, the first one wins."""
    served = ServedLimits(adds_metadata=True)
    response = served.response("user=a | path=/v1/x~h2 | none=1~L7/day @3")
    assert MessageToDict(response.dynamic_metadata) == {
        "domain": "shop",
        "hitsAddend": 3.0,
        "descriptors": [
            {"entries": ["user=a"]},
            {"entries": ["path=/v1/x"], "hitsAddend": 2.0},
            {"entries": ["none=1"], "limit": "requests_per_unit:7 unit:DAY"},
        ],
        "metadata": {"team": {"name": "core", "size": 3.0}, "a": 1.0},
    }
    response = served.response("user=a @9 | path=/v1/x".replace(" @9", "~h9"))
    metadata = MessageToDict(response.dynamic_metadata)
    assert metadata["metadata"] == {"team": {"size": 3.0}, "a": 2.0}
    assert "hitsAddend" not in metadata
    assert "metadata" not in MessageToDict(served.response("none=1").dynamic_metadata)


def test_shadow_mode__lets_all_pass() -> None:
    """The statuses say what would be refused; the overall code does not."""
    served = ServedLimits(is_shadow=True)
    assert text_of(served.response("user=a @6")) == "OK [OVER 5/day r0 daily]"
    assert text_of(served.response("user=b~L1/day @2")) == "OK [OVER 1/day r0]"
    assert (served.calls("ok"), served.calls("over_limit")) == (2, 0)


def test_headers__have_the_configured_names() -> None:
    """Plain integers: limit, remaining, seconds until the reset."""
    headers = ("X-L", "X-Left", "X-When")
    response = ServedLimits(headers=headers).response("user=a")
    now_s = ManualClock()() // 1_000_000
    assert [(header.key, header.value) for header in response.response_headers_to_add] == [
        ("X-L", "5"), ("X-Left", "4"), ("X-When", str(86_400 - now_s % 86_400)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("request_text", "problem"),
    [
        ("in : user=a", "domain: must not be empty"),
        ("NONE", "descriptors: must be 1 to 64 of them, not 0"),
        (" | ".join(["user=a"] * (DESCRIPTORS_MAX + 1)), "descriptors: must be 1 to 64 of them, not 65"),
        (",".join(["a=b"] * (ENTRIES_MAX + 1)), "descriptors[0].entries: must be at most 32, not 33"),
        (f"user=a | user={'x' * (ENTRY_CHARS_MAX + 1)}", "descriptors[1].entries: keys and values must have"),
        (f"{'x' * (ENTRY_CHARS_MAX + 1)}=a", "descriptors[0].entries: keys and values must have"),
        (f"user=a~h{HITS_MAX + 1}", f"descriptors[0].hits_addend: must be at most {HITS_MAX}"),
        (f"user=a~h{2**64 - 2}", f"descriptors[0].hits_addend: must be at most {HITS_MAX}"),
        ("user=a~L5/unknown", "descriptors[0].limit.unit: must be SECOND to YEAR, or WEEK; 0 is none"),
    ],
)  # fmt: skip
def test_refused__what_cannot_be_meant(request_text: str, problem: str) -> None:
    """INVALID_ARGUMENT with the field; nothing is counted but the call."""
    served = ServedLimits()
    code, detail = served.refusal(request_text)
    assert code is StatusCode.INVALID_ARGUMENT
    assert detail.startswith(problem)
    assert len(served.store) == 0
    assert served.calls("invalid") == 1


def test_bounds__are_inclusive() -> None:
    """What is just within every bound is answered."""
    served = ServedLimits()
    request = request_of(f"user={'x' * ENTRY_CHARS_MAX}~h{HITS_MAX}", "shop")
    for _ in range(DESCRIPTORS_MAX - 1):
        request.descriptors.add().entries.extend(request.descriptors[0].entries[:1] * ENTRIES_MAX)
    assert text_of(served.response(request)).startswith("OVER [OVER 5/day r0 daily | - |")


def test_override__an_unknown_unit_ends_one_call() -> None:
    """In the original it ends the process."""
    served = ServedLimits()
    request = request_of("user=a~L5/day", "shop")
    request.descriptors[0].limit.unit = 99
    assert served.refusal(request)[0] is StatusCode.INVALID_ARGUMENT
    request.descriptors[0].limit.unit = 7  # a week, though not in this enum
    assert text_of(served.response(request)) == "OK [OK 5/week r4]"


def test_refused__bytes_that_are_no_message() -> None:
    """The same code as for Envoy's other services."""
    with pytest.raises(RpcError) as raised:
        ServedLimits().service.should_rate_limit(b"\xff", FakeCall())
    assert raised.value.code is StatusCode.INTERNAL


@pytest.mark.parametrize("fault", list(StoreFault))
def test_store__that_cannot_be_asked(fault: StoreFault) -> None:
    """UNAVAILABLE, at once or later, whatever the store lacks; unmatched descriptors need no store."""
    store = RecordingCounters()
    served = ServedLimits(store)
    call = FakeCall()
    message = request_of("user=a", "shop").SerializeToString()
    assert served.service.should_rate_limit(message, call) is None
    store.pending.pop()[3](fault)
    [(code, detail)] = call.failures
    assert code is StatusCode.UNAVAILABLE
    assert detail
    assert served.calls("unavailable") == 1
    assert text_of(served.response("none=1 | free=1")) == "OK [- | U]"


def test_store__that_is_full() -> None:
    """The embedded store's bound ends the call as UNAVAILABLE, too."""
    served = ServedLimits(EmbeddedCounterStore(ManualClock(), counters_max=1))
    served.response("user=a")
    assert served.refusal("user=b")[0] is StatusCode.UNAVAILABLE


def test_store__that_answers_later() -> None:
    """One round trip serves all descriptors; a reload during it does not change the call's rules."""
    store = RecordingCounters()
    served = ServedLimits(store)
    call = FakeCall()
    message = request_of("user=a | path=/v1/x | none=1", "shop").SerializeToString()
    assert served.service.should_rate_limit(message, call) is None
    served.limiter.put_in_force(read_limits("domain: other"))
    [(domain, takes, timeout_s, done)] = store.pending
    assert (domain, [take.limit for take in takes], timeout_s) == ("shop", [5, 9], 0.05)
    done(CountersTaken(1_764_000_000_000_000, [Counted(False, 2), Counted(True, 10)]))
    [reply] = call.replies
    text = text_of(RateLimitResponse.FromString(reply))
    assert text == "OVER [OK 5/day r3 daily | OVER 9/hour r0 | -]"


def test_store__gets_most_of_what_the_caller_has_left() -> None:
    """Envoy waits 20 ms by default, less than the store's own bound."""
    store = RecordingCounters()
    message = request_of("user=a", "shop").SerializeToString()
    ServedLimits(store).service.should_rate_limit(message, FakeCall(monotonic() + 0.02))
    assert 0 < store.pending[0][2] < 0.02


def test_metrics__name_rules_and_never_callers() -> None:
    """Hits by rule; 10,000 domains and values of callers add no row."""
    served = ServedLimits()
    served.response("user=a @4")
    served.response("user=a @4")
    served.response("dry=1 @3")
    served.response("user=b~L1/day | none=x | free=1 @2")
    before = len(served.metrics.rows()[HITS])
    for number in range(10_000):
        served.response(f"in d{number}: user={number}")
        served.response(f"path=/v1/{number}")
    assert len(served.metrics.rows()[HITS]) == before
    assert served.hits("shop", "user") == [5, 3, 0]  # what overshoots a window is over, the rest within
    assert served.hits("shop", "dry") == [1, 0, 2]
    assert served.hits("shop", "(override)") == [1, 1, 0]
    assert served.hits("shop", "(none)") == [4, 0, 0]
    assert served.hits("(unknown)", "(none)") == [10_000, 0, 0]
    assert served.hits("shop", "path_/v1/*") == [10_000, 0, 0]


@pytest.mark.parametrize("remaining", [0, 1, 127, 128, 16_384, 2**32 - 1])
@pytest.mark.parametrize("reset_s", [0, 1, 300, 31_536_000])
@pytest.mark.parametrize("is_over", [False, True])
def test_encode__is_what_protobuf_writes(remaining: int, reset_s: int, is_over: bool) -> None:
    """The bytes that are put together by hand are those of the message, whatever its figures."""
    limit = Limit(Unit.WEEK, 4_000_000_000, "café")
    answer = LimitAnswer(is_over, [Status(limit, is_over, remaining, reset_s), Status(None)])
    code = RateLimitResponse.OVER_LIMIT if is_over else RateLimitResponse.OK
    expected = RateLimitResponse(overall_code=code)
    status = expected.statuses.add(code=code, limit_remaining=remaining)
    status.current_limit.requests_per_unit = limit.requests
    status.current_limit.unit = RateLimitResponse.RateLimit.WEEK
    status.current_limit.name = limit.name
    status.duration_until_reset.seconds = reset_s
    expected.statuses.add(code=RateLimitResponse.OK)
    assert encode(answer) == expected.SerializeToString()


def test_encode__limits_of_requests_are_bounded() -> None:
    """Requests that bring a limit of their own each fill no memory, and get theirs."""
    served = ServedLimits()
    for number in range(LIMIT_FIELDS_MAX + 10):
        limit = number + 1
        assert text_of(served.response(f"user=a~L{limit}/year~h0")) == f"OK [OK {limit}/year r{limit}]"


def test_plans__are_kept_for_equal_calls_only() -> None:
    """The same bytes count again by the same rules; other rules hold from the next call on."""
    served = ServedLimits()
    assert [text_of(served.response("user=a")) for _ in range(2)] == [
        "OK [OK 5/day r4 daily]", "OK [OK 5/day r3 daily]",
    ]  # fmt: skip
    served.limiter.put_in_force(read_limits(FILE.replace("requests_per_unit: 5", "requests_per_unit: 2")))
    assert text_of(served.response("user=a")) == "OVER [OVER 2/day r0 daily]"
    for number in range(PLANS_MAX + 10):
        served.response(f"none={number}")
    assert served.hits("shop", "(none)") == [PLANS_MAX + 10, 0, 0]


MIXED = """
domain: shop
descriptors:
  - {key: window, rate_limit: {unit: day, requests_per_unit: 2}}
  - {key: bucket, rate_limit: {unit: day, requests_per_unit: 2, algorithm: token_bucket}}
"""


def test_algorithms__of_single_limits_meet_in_a_call() -> None:
    """A bucket takes only when the whole call fits; a window counts each call, as in the original."""
    served = ServedLimits(limits=read_limits(MIXED))
    assert text_of(served.response("window=a | bucket=a")) == "OK [OK 2/day r1 | OK 2/day r1]"
    assert text_of(served.response("window=a | bucket=a~h2")) == "OVER [OK 2/day r0 | OVER 2/day r0]"
    assert text_of(served.response("window=a | bucket=a")) == "OVER [OVER 2/day r0 | OK 2/day r1]"
    assert text_of(served.response("bucket=a")) == "OK [OK 2/day r0]"


def test_algorithms__all_or_none_holds_for_windows_by_setting() -> None:
    """Then a refused call counts nothing anywhere."""
    served = ServedLimits(limits=read_limits(MIXED), all_or_none=True)
    assert text_of(served.response("window=a | bucket=a~h3")) == "OVER [OK 2/day r2 | OVER 2/day r0]"
    assert text_of(served.response("window=a @2")) == "OK [OK 2/day r0]"


def test_algorithms__a_bucket_says_when_it_is_full() -> None:
    """Seconds until it is full; over limit, until these hits fit, at least 1; 0 for one that is full."""
    served = ServedLimits(limits=read_limits(MIXED))

    def reset_s(text: str) -> int:
        return int(served.response(text).statuses[0].duration_until_reset.seconds)

    assert [reset_s("bucket=a~h0"), reset_s("bucket=a"), reset_s("bucket=a")] == [0, 43_200, 86_400]
    assert [reset_s("bucket=a"), reset_s("bucket=a~h2"), reset_s("bucket=a~h3")] == [43_200, 86_400, 86_400]
