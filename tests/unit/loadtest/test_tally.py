"""Checks of single answers, with times set by hand: every planted lie is counted."""

from __future__ import annotations

from array import array

import pytest

from loadtest.driver.connection import Call
from loadtest.harness.answers import MISSING, Answer
from loadtest.harness.tally import SECOND_NS, UNANSWERED, Rules, Second, TallyingLoad
from loadtest.harness.workload import FOREIGN_ADDRESS, SUSPENDED, UNKNOWN, VALID, WRONG_SCOPE, Workload

EPOCH_S = 1_000_000.0
"""The time of day at which the monotonic clock is 0."""
KINDS = bytes((VALID, UNKNOWN, SUSPENDED, WRONG_SCOPE, FOREIGN_ADDRESS))
GOOD = Answer(200, 600, 4, EPOCH_S + 1)
REFUSED = Answer(429, 600, 0, EPOCH_S + 1)


class Scene:
    """One integration that sends one call after another; the answers are given."""

    def __init__(self, rules: Rules | None = None) -> None:
        """Check answers by *rules*."""
        workload = Workload("", [b""] * 5, KINDS, array("I", [0] * 5), array("I", [0]), 1)
        self.answer = GOOD
        self.load = TallyingLoad(
            workload,
            lambda message, now_s: self.answer,
            rules or Rules(600, 5, 0.5),
            clock_s=lambda: EPOCH_S,
            clock_ns=lambda: 0,
        )

    def call(self, at_s: float, answer: Answer | None, kind: int = VALID) -> None:
        """Send a call at *at_s*; it is answered after a millisecond, None = never."""
        sent_ns = int(at_s * SECOND_NS)
        number, tag = self.load.next_call(sent_ns)
        self.answer = answer or GOOD
        message = b"" if answer is not None else None
        self.load.ended(Call(sent_ns, sent_ns, kind or number, tag), message, sent_ns + 1_000_000)

    @property
    def wrong(self) -> dict[str, int]:
        """The wrong answers by kind."""
        return dict(self.load.tally.wrong)


@pytest.mark.parametrize(
    ("kind", "status", "is_right"),
    [
        (VALID, 200, True),
        (VALID, 429, True),
        (VALID, 403, False),
        (UNKNOWN, 403, True),
        (UNKNOWN, 429, True),
        (UNKNOWN, 200, False),
        (SUSPENDED, 200, False),
        (SUSPENDED, 403, True),
        (WRONG_SCOPE, 200, False),
        (FOREIGN_ADDRESS, 429, False),
        (VALID, 0, False),
    ],
)
def test_tally__a_verdict_is_right_for_its_kind_or_wrong(kind: int, status: int, is_right: bool) -> None:
    """A request that must be denied and is let in is a wrong answer, and so is the reverse."""
    scene = Scene()
    scene.call(0.1, Answer(status, 600, 4, EPOCH_S + 1), kind)
    assert (scene.wrong == {}) == is_right


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (Answer(200, 600, 4, MISSING), "missing header"),
        (Answer(429, MISSING, 0, EPOCH_S + 1), "missing header"),
        (Answer(200, 60, 4, EPOCH_S + 1), "wrong limit"),
        (Answer(200, 600, 6, EPOCH_S + 1), "wrong limit"),
        (Answer(429, 600, 0, EPOCH_S), "reset in the past"),
        (Answer(429, 600, 0, EPOCH_S + 9), "reset too late"),
    ],
)
def test_tally__headers_that_lie_are_counted(answer: Answer, what: str) -> None:
    """With 600 per minute and a burst of 5, a bucket is full after half a second at most."""
    scene = Scene()
    scene.call(0.5, answer)
    assert scene.wrong == {what: 1}
    assert scene.load.tally.samples[what]


def test_tally__headers_need_not_be_there_if_the_scenario_says_so() -> None:
    """Another server may not send them."""
    scene = Scene(Rules(600, 5, 0.5, has_headers=False))
    scene.call(0.5, Answer(200))
    assert scene.wrong == {}


def test_tally__a_refusal_after_the_reset_is_a_lie() -> None:
    """Nothing was taken since, so the bucket is full, whatever later refusals say of it."""
    scene = Scene()
    scene.call(0.1, GOOD)
    scene.call(0.9, Answer(429, 600, 0, EPOCH_S + 1.2))
    assert scene.wrong == {}
    scene.call(1.1, Answer(429, 600, 0, EPOCH_S + 2))
    assert scene.wrong == {"refused after the reset": 1}


@pytest.mark.parametrize("excuse", ["lost call", "not judged", "clock skew"])
def test_tally__a_refusal_after_the_reset_may_have_a_reason(excuse: str) -> None:
    """A lost call may have taken tokens; others may use the bucket; the clocks may differ."""
    rules = Rules(
        *(600, 5, 0.5),
        clock_skew_s=5.0 if excuse == "clock skew" else 0.0,
        judges_resets=excuse != "not judged",
    )
    scene = Scene(rules)
    scene.call(0.1, GOOD)
    if excuse == "lost call":
        scene.call(0.2, None)
    scene.call(1.1, Answer(429, 600, 0, EPOCH_S + 2))
    assert scene.wrong == {}


def test_tally__counts_by_second_and_integration() -> None:
    """Latency counts from the due time; seconds are reported once their calls have ended."""
    scene = Scene()
    reported: dict[int, Second] = {}
    load = scene.load
    for at_s, answer in ((0.1, GOOD), (0.2, REFUSED), (1.5, None)):
        scene.call(at_s, answer)
    load.lagged(int(0.1 * SECOND_NS), 5_000)
    reported.update(load.pop_seconds(1))
    assert list(reported) == [0]
    assert reported[0].statuses == {(VALID, 200): 1, (VALID, 429): 1}
    assert (reported[0].latencies_us, reported[0].lags_us) == ({1_000: 2}, {5: 1})
    assert reported[0].valid_latencies_us == {1_000: 2}
    assert load.pop_seconds(9)[1].statuses == {(VALID, UNANSWERED): 1}
    tally = load.tally
    assert [*tally.admitted, *tally.refused, *tally.lost] == [1, 1, 1]
    assert [tally.first_ns[0] / 1e9, tally.last_ns[0] / 1e9] == [0.1, 0.101]


def test_tally__tallies_of_processes_add_up() -> None:
    """An integration's time is from the first sending to the last answer of any process."""
    first, second = Scene(), Scene()
    first.call(0.1, GOOD)
    second.call(0.3, GOOD)
    second.call(0.4, Answer(403, 600, 4, EPOCH_S + 1))
    first.load.tally.add(second.load.tally)
    total = first.load.tally
    assert (list(total.admitted), dict(total.wrong)) == ([2], {"verdict/0/403": 1})
    assert [total.first_ns[0] / 1e9, total.last_ns[0] / 1e9] == [0.1, 0.301]
