"""Decisions on their way to the log: complete, bounded while nobody reads, and every loss is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sidecar.domain.decision_rows import COLUMN_NAMES
from sidecar.domain.enforcement import Rule
from sidecar.domain.policy import AccessRequest
from sidecar.domain.rate_limits.decisions import LimitStyle
from sidecar.domain.snapshot import Snapshot
from sidecar.services import decision_recorder
from sidecar.services.decision_recorder import (
    FRAME_ROWS,
    FRAMES_PER_TURN_MAX,
    WAITING_ROWS_MAX,
    DecisionRecorder,
)
from sidecar.services.rate_limiter import RateLimiter
from sidecar.services.rls import limit_request
from sidecar.stores.decisions.frames import FRAME_BYTES_MAX, Counts, Frame, Kind, read_frame
from sidecar.stores.decisions.lines import decision_rows
from sidecar.stores.embedded_counters import EmbeddedCounterStore
from tests.building import (
    CLIENT_IP,
    NOW_US,
    ManualClock,
    make_decider,
    make_integration,
    make_key,
    make_metrics,
    make_request,
)
from tests.golden_rate_limits import read_limits, request_of

AMPLE = {"rate_limit_rpm": 10_000, "burst": 1_000_000}


class FrameReader:
    """The other end of the socket, which reads while `is_reading`."""

    def __init__(self) -> None:
        """Begin without frames."""
        self.is_reading = True
        self.frames: list[Frame] = []

    def send(self, message: bytes) -> bool:
        """Take *message*, unless nobody reads."""
        if self.is_reading:
            self.frames.append(read_frame(message))
        return self.is_reading

    @property
    def rows(self) -> list[dict[str, object]]:
        """The rows received, by column."""
        return [
            dict(zip(COLUMN_NAMES, row, strict=True))
            for frame in self.frames
            for row in decision_rows(frame.lines)
        ]


class TimersByHand:
    """A loop whose timers run when a test says so."""

    def __init__(self) -> None:
        """Begin without timers."""
        self._due: list[Callable[[], None]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> object:
        """Keep *callback*."""
        self._due.append(callback)
        return None

    def run(self) -> None:
        """Run the timers that were set so far."""
        due, self._due = self._due, []
        for callback in due:
            callback()


class RecordedDecider:
    """A decider that records, an integration, and the reader of its rows."""

    def __init__(self, sample_allowed: float = 1.0, chances: tuple[float, ...] = ()) -> None:
        """Record with a manual clock; *chances* are what the recorder draws."""
        self.key = make_key()
        self.clock = ManualClock()
        self.reader, self.timers = FrameReader(), TimersByHand()
        draws = iter(chances)
        self.recorder = DecisionRecorder(
            self.reader.send, 3, "process", self.timers, sample_allowed,
            lambda: self.clock() * 1_000, lambda: next(draws),
        )  # fmt: skip
        self.decider = make_decider(make_integration(self.key, **AMPLE), clock=self.clock)
        self.decider.on_decided = self.recorder.note
        self.recorder.policy = self.decider.policy

    def decide(self, count: int = 1, *, allowed: bool = True, path: str = "/v1/orders/42") -> str:
        """Decide *count* requests; return the id of the last decision."""
        for _ in range(count):
            request = make_request(self.key.api_key if allowed else None, path=path)
            decision = self.decider.decide(request, None, lambda decision, context: None, None)
            assert decision is not None
        return decision.id


def test_recorder__a_row_has_what_the_decision_was() -> None:
    """Of an allowed request: who, what, by which route and limit; the path without its query."""
    scene = RecordedDecider()
    headers = {
        "x-api-key": scene.key.api_key,
        "x-request-id": "r" * 300,
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }
    path, peer = "/v1/orders/42?token=x", "2001:DB8::7"
    request = AccessRequest("GET", path, headers.get, peer, None, None, None, "native")
    decision = scene.decider.decide(request, None, lambda decision, context: None, None)
    assert decision is not None
    scene.timers.run()
    [row] = scene.reader.rows
    expected = {
        "time": NOW_US,
        "decision_id": decision.id,
        "request_id": "r" * 256,
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "integration": "acme",
        "credential": scene.key.credential_id,
        "verdict": "ALLOW",
        "reason": "ok",
        "path": "/v1/orders/42",
        "scope": "orders:read",
        "client_address": "2001:db8::7",
        "remaining": 999_999,
        "limit_rpm": 10_000,
        "reset_at": NOW_US + 6_000,
        "store_time": NOW_US,
        "fallback": "",
        "dialect": "native",
        "worker": 3,
        "generation": 1,
    }
    assert expected.items() <= row.items()
    assert scene.key.api_key not in str(scene.reader.frames)


def test_recorder__a_refusal_has_the_address_of_an_unknown_caller() -> None:
    """A caller without a key: nothing of an integration, but where the request came from."""
    scene = RecordedDecider()
    scene.decide(allowed=False)
    scene.decider.refuse(decision_recorder.Reason.ROUTE_MISCONFIGURED, "")
    scene.timers.run()
    unknown, unreadable = scene.reader.rows
    expected = {"integration": "", "reason": "missing_credential", "client_address": CLIENT_IP}
    assert expected.items() <= unknown.items()
    assert (unknown["remaining"], unknown["limit_rpm"], unknown["store_time"]) == (-1, 0, 0)
    assert (unreadable["reason"], unreadable["path"]) == ("route_misconfigured", "")


def test_recorder__sends_a_frame_when_it_is_full_or_due() -> None:
    """64 rows at once; fewer after a tenth of a second, by one timer."""
    scene = RecordedDecider()
    scene.decide(FRAME_ROWS + 1)
    assert [frame.rows for frame in scene.reader.frames] == [(FRAME_ROWS, 0)]
    scene.timers.run()
    assert [frame.rows for frame in scene.reader.frames] == [(FRAME_ROWS, 0), (1, 0)]
    assert scene.reader.frames[-1].counts == Counts(allowed=FRAME_ROWS + 1)
    scene.timers.run()
    assert len(scene.reader.frames) == 2


def test_recorder__while_nobody_reads_refusals_are_kept_longest() -> None:
    """Rows are bounded: the oldest allowed ones go first, refusals last; later all is sent and reported."""
    scene = RecordedDecider()
    scene.reader.is_reading = False
    scene.decide(10, allowed=False)
    scene.decide(WAITING_ROWS_MAX + 40)
    scene.recorder.flush()
    dropped = 50 + 14  # whole frames
    assert scene.recorder.waiting == WAITING_ROWS_MAX + 50 - dropped
    assert scene.recorder.counts == Counts(dropped_allowed=dropped)
    scene.clock.advance(1)
    kept = scene.decide()
    scene.reader.is_reading = True
    for _ in range(WAITING_ROWS_MAX // (FRAME_ROWS * FRAMES_PER_TURN_MAX) + 2):
        scene.timers.run()
    assert scene.recorder.waiting == 0
    last = scene.reader.frames[-1]
    allowed = WAITING_ROWS_MAX + 41 - dropped
    assert last.counts == Counts(allowed=allowed, refused=10, dropped_allowed=dropped)
    assert scene.reader.frames[0].rows == (0, 10)
    rows = scene.reader.rows
    assert {row["verdict"] for row in rows[:10]} == {"DENY_403"}
    assert len({row["decision_id"] for row in rows}) == allowed + 10
    assert rows[-1]["decision_id"] == kept
    assert scene.reader.frames[0].settled_us == NOW_US
    assert last.settled_us == last.sent_us == NOW_US + 1_000_000


def test_recorder__refusals_are_dropped_last() -> None:
    """Only when nothing but refusals wait, the oldest of them go."""
    scene = RecordedDecider()
    scene.reader.is_reading = False
    scene.decide(5)
    scene.decide(WAITING_ROWS_MAX + 3, allowed=False)
    scene.recorder.flush()
    assert scene.recorder.counts == Counts(dropped_allowed=5, dropped_refused=FRAME_ROWS)


def test_recorder__samples_allowed_requests_only() -> None:
    """What is left out is counted; refusals are always recorded."""
    scene = RecordedDecider(0.5, (0.1, 0.5, 0.9, 0.49))
    scene.decide(4)
    scene.decide(2, allowed=False)
    scene.timers.run()
    assert scene.reader.frames[-1].counts == Counts(allowed=2, refused=2, sampled=2)
    assert len(scene.reader.rows) == 4


def test_recorder__what_only_shadow_allowed_is_always_recorded() -> None:
    """It is a refusal to come: no sampling leaves it out, and the row names its reason."""
    scene = RecordedDecider(0.0, ())
    record = make_integration(scene.key, scopes=(), shadow=frozenset(Rule), **AMPLE)
    scene.decider.snapshot = Snapshot.compile([record])
    scene.decide()
    scene.timers.run()
    [row] = scene.reader.rows
    assert (row["verdict"], row["reason"], row["would_deny"]) == ("ALLOW", "ok", "scope_missing")


def test_recorder__answers_of_the_rate_limit_service_are_rows() -> None:
    """The domain is the path, the rule the route; a call without a limit has no rule."""
    scene = RecordedDecider()
    limits = read_limits(
        "{domain: shop, descriptors: [{key: user, rate_limit: {unit: day, requests_per_unit: 1}}]}"
    )
    store = EmbeddedCounterStore(ManualClock())
    limiter = RateLimiter(limits, LimitStyle(), store, make_metrics())
    limiter.on_answered = scene.recorder.note_limits
    planned = [
        limiter.plan(limit_request(request_of(text, "shop"))) for text in ("user=a", "user=a", "free=b")
    ]
    for call in planned:
        limiter.limit(call, None, lambda answer, context: None, None)
    scene.recorder.note_limits(planned[0], None, 1_000)
    scene.timers.run()
    found = [
        (row["reason"], row["path"], row["route"], row["remaining"], row["limit_rpm"])
        for row in scene.reader.rows
    ]
    assert found == [
        ("rate_limited", "shop", "user", 0, 0),
        ("store_unavailable", "shop", "", -1, 0),
        ("ok", "shop", "user", 0, 0),
        ("ok", "shop", "", -1, 0),
    ]
    assert {row["dialect"] for row in scene.reader.rows} == {"rls"}
    assert len({row["decision_id"] for row in scene.reader.rows}) == 4


def test_recorder__counts_are_sent_without_rows() -> None:
    """With everything sampled away, the writer still learns how much."""
    scene = RecordedDecider(0.0, (0.0,))
    scene.decide()
    scene.timers.run()
    assert scene.reader.frames[-1].counts == Counts(sampled=1)


def test_recorder__long_rows_are_sent_in_several_frames() -> None:
    """The longest paths of a whole frame exceed what a socket takes: the frame is halved, nothing is lost."""
    scene = RecordedDecider()
    scene.decide(FRAME_ROWS, allowed=False, path="/" + "ü" * 4_000)
    sizes = [len(frame.packed()) for frame in scene.reader.frames]
    assert len(sizes) > 1
    assert max(sizes) <= FRAME_BYTES_MAX
    assert len(scene.reader.rows) == FRAME_ROWS
    assert scene.reader.frames[-1].counts == Counts(refused=FRAME_ROWS)
    assert {len(str(row["path"])) for row in scene.reader.rows} == {2_048}


def test_recorder__a_closed_socket_loses_rows_and_nothing_else() -> None:
    """Decisions go on when the supervisor is dead; the rows are counted as dropped."""
    scene = RecordedDecider()

    def send(message: bytes) -> bool:
        raise BrokenPipeError

    recorder = DecisionRecorder(send, 0, "process", scene.timers)
    scene.decider.on_decided = recorder.note
    scene.decide(FRAME_ROWS)
    assert recorder.counts == Counts(dropped_allowed=FRAME_ROWS)


async def test_recorder__ends_with_everything_sent() -> None:
    """A worker that drains waits for room, a second at most, and says that this was all."""
    scene = RecordedDecider()
    scene.reader.is_reading = False
    scene.decide(3)

    asyncio.get_running_loop().call_later(0.01, setattr, scene.reader, "is_reading", True)
    await scene.recorder.end(timeout_s=60)
    found = [(frame.kind, frame.rows) for frame in scene.reader.frames]
    assert found == [(Kind.ROWS, (3, 0)), (Kind.LAST, (0, 0))]
    assert scene.reader.frames[-1].counts == Counts(allowed=3)
