"""What the programs that prove promises make of what they see: each finds what it is there to find."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from loadtest.failover.answers import DRAINING, DRY, Answer, AnswerLog, Failover
from loadtest.failover.stores import start_store
from loadtest.hostile_peers.trials import GROWTH_MAX_BYTES, PeerRound, PeerTrial
from loadtest.proving import percentile
from loadtest.redis_servers import RedisServerError
from loadtest.revocation.load import ADMITTED_FIRST, CONNECTIONS, DENIED_AFTER, RevocationLoad, Trial
from loadtest.revocation.trials import CompletedTrial, RevocationReport
from sidecar.verify.accuracy import Terms
from sidecar.verify.subjects import Subject

MS = 1_000_000


def response(status: int) -> bytes:
    """A CheckResponse with this HTTP status; 0 = no answer."""
    if status == 0:
        return b""
    made = CheckResponse()
    if status != 200:
        made.status.code = 7
        made.denied_response.status.code = status
    else:
        made.ok_response.SetInParent()
    message: bytes = made.SerializeToString()
    return message


class TrialHarness:
    """A load of two sidecars without sockets: answers are given by hand."""

    def __init__(self) -> None:
        """Begin trial 1."""
        self.told: list[dict[str, Any]] = []
        self.load = RevocationLoad(["unix:/a", "unix:/b"], self.told.append)
        self.load.handle_line({"trial": 1, "key": "sck_a_b"})

    def answer(self, sidecar: int, status: int, sent_ns: int, count: int = 1) -> None:
        """So many calls through *sidecar* begin and end with *status*."""
        for _ in range(count):
            assert self.load.next_call(sidecar * CONNECTIONS) is not None
            self.load.ended(sidecar * CONNECTIONS, 1, response(status), sent_ns)

    def get_going(self) -> None:
        """Both sidecars admit."""
        for sidecar in (0, 1):
            self.answer(sidecar, 200, 1, ADMITTED_FIRST)
        assert self.told == [{"trial": 1, "loaded": True}]

    def result(self) -> dict[str, Any]:
        """What was told last."""
        told: dict[str, Any] = self.told[-1]["result"]
        return told


def test_trial__tells_who_was_let_in_after_the_commit() -> None:
    """Only requests sent after it count; those that were under way may still be admitted."""
    harness = TrialHarness()
    harness.get_going()
    harness.answer(0, 200, sent_ns=90)
    harness.answer(1, 403, sent_ns=95)
    harness.load.handle_line({"trial": 1, "committed_ns": 100})
    harness.answer(0, 200, sent_ns=99)
    harness.answer(0, 200, sent_ns=101)
    harness.answer(0, 403, 102, DENIED_AFTER)
    assert len(harness.told) == 1, "the other sidecar has not denied yet"
    harness.answer(1, 403, 103, DENIED_AFTER)
    result = harness.result()
    assert (result["violations"], result["judged"]) == (1, 1 + 2 * DENIED_AFTER)
    assert result["admitted"] == 2 * ADMITTED_FIRST + 3
    assert all(result["first_denials_ns"])


def test_trial__ends_when_no_request_is_in_flight() -> None:
    """A request whose answer is still to come could be the one that was let in."""
    harness = TrialHarness()
    harness.get_going()
    assert harness.load.next_call(0) is not None
    harness.load.handle_line({"trial": 1, "committed_ns": 100})
    for sidecar in (0, 1):
        harness.answer(sidecar, 403, 102, DENIED_AFTER)
    assert len(harness.told) == 1
    assert harness.load.next_call(0) is None
    harness.load.ended(0, 1, response(200), 101)
    assert harness.result()["violations"] == 1


def test_trial__the_administrator_may_end_it() -> None:
    """Where a sidecar never denies, the trial ends all the same, and says so."""
    harness = TrialHarness()
    harness.get_going()
    harness.load.handle_line({"trial": 1, "committed_ns": 100})
    harness.answer(0, 200, 150, 3)
    harness.load.handle_line({"trial": 1, "over": True})
    assert harness.result()["violations"] == 3
    assert harness.result()["first_denials_ns"] == [0, 0]


def test_trial__denials_before_the_commit_is_known_count_too() -> None:
    """Answers that came while the administrator's line was on its way are looked at again."""
    trial = Trial(1, b"", 1)
    trial.count(0, 403, sent_ns=150)
    trial.count(0, 403, sent_ns=50)
    trial.commit(100)
    assert trial.denied_after == [1]


def held(**changes: Any) -> CompletedTrial:
    """A trial that kept the promise, but for *changes*."""
    harness = TrialHarness()
    harness.get_going()
    harness.load.handle_line({"trial": 1, "committed_ns": 100})
    for sidecar in (0, 1):
        harness.answer(sidecar, 403, 102, DENIED_AFTER)
    from loadtest.revocation.load import TrialResult

    result = replace(TrialResult(**harness.result()), first_denials_ns=[3 * MS, 5 * MS])
    return CompletedTrial(1 * MS, 2 * MS, replace(result, **changes))


@pytest.mark.parametrize(
    "changes", [{"violations": 1}, {"others": 1}, {"unanswered": 1}, {"first_denials_ns": [1, 0]}]
)
def test_revocation__each_way_to_break_it(changes: dict[str, Any]) -> None:
    """Somebody let in, an odd answer, none at all, or a sidecar that was not seen to deny: broken."""
    assert held().is_kept
    report = RevocationReport(2, 1.0, (held(), held(**changes)))
    assert not report.is_kept
    assert report.as_json()["verdict"] == "broken"


def test_revocation__figures() -> None:
    """From the commit's return to the denial of the last sidecar; a store that is late is no breach."""
    report = RevocationReport(2, 1.0, (held(), held(first_denials_ns=[1 * MS, 1 * MS], failed=4)))
    told = report.as_json()
    assert told["last_first_denial_after_commit_ms"] == {"p50": -1.0, "p99": 3.0, "max": 3.0}
    assert told["commit_ms"]["max"] == 1.0
    assert (told["verdict"], told["answered_503"]) == ("kept", 4)


SUBJECTS = (Subject("draining", Terms(600, 100, 100), b""), Subject("dry", Terms(600, 10, 10), b""))


def failover(*answers: Answer, **changes: Any) -> Failover:
    """A run of one second with one sidecar, whose primary was killed after 10 ms."""
    given = {"killed_ns": 10 * MS, "promoted_ns": 30 * MS, "window_us": 1_000_000, "hung": 0, "failovers": 1}
    return Failover(SUBJECTS, 1, answers, **{**given, **changes})


def at(received_ms: int, status: int, bucket: int = DRAINING, waited_ms: int = 1) -> Answer:
    """An answer."""
    return Answer(0, bucket, status, (received_ms - waited_ms) * MS, received_ms * MS)


RECOVERING = (at(5, 200), at(12, 503), at(20, 503, waited_ms=7), at(40, 200), at(50, 200))


def test_failover__recovery_is_the_first_normal_answer_after_a_failed_one() -> None:
    """What lies between the kill and it is told by status, with its waits."""
    told = failover(*RECOVERING).as_json()
    assert told["answers_during"] == {"200": 1, "503": 2}
    assert (told["kill_to_normal_ms"], told["promoted_to_normal_ms"]) == (30, 10)
    assert (told["wait_during_ms"]["max"], told["slowest_answer_ms"]) == (7.0, 7.0)
    assert told["verdict"] == "kept"
    json.dumps(told)


def test_failover__a_late_store_is_told_apart_from_the_failover() -> None:
    """On a busy machine a store may be late again; that is counted, and no second failover."""
    told = failover(*RECOVERING, at(70, 503)).as_json()
    assert (told["kill_to_normal_ms"], told["answers_503_later"], told["verdict"]) == (30, 1, "kept")


def test_failover__one_that_never_ends_is_told_whole() -> None:
    """Without a recovery the answers up to the end are told."""
    told = failover(*RECOVERING[:3]).as_json()
    assert (told["kill_to_normal_ms"], told["answers_during"], told["verdict"]) == (
        None,
        {"503": 2},
        "broken",
    )


def test_failover__over_admission_is_counted_beyond_the_promise() -> None:
    """A second at 600 a minute adds 10; what is more was given twice, and one burst of that may be."""
    dry = [at(60, 200, DRY)] * 23
    kept = failover(*RECOVERING, *dry)
    assert (kept.over_admitted(DRY), kept.over_admitted(DRAINING), kept.is_kept) == (3, 0, True)
    broken = failover(*RECOVERING, *dry, *[at(60, 200, DRY)] * 8)
    assert (broken.over_admitted(DRY), broken.is_kept) == (11, False)
    assert replace(broken, failovers=2).is_kept, "two failovers may each give a burst again"


@pytest.mark.parametrize(
    ("answers", "changes"),
    [
        (RECOVERING, {"hung": 1}),
        ((*RECOVERING, at(45, 0)), {}),
        ((*RECOVERING, at(45, 403)), {}),
        (RECOVERING[:3], {}),
    ],
    ids=["hung", "unanswered", "odd", "never normal again"],
)
def test_failover__each_way_to_break_it(answers: tuple[Answer, ...], changes: dict[str, Any]) -> None:
    """A request without its defined answer, or a sidecar that does not recover: broken."""
    assert not failover(*answers, **changes).is_kept


def test_answers__are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that never ends does not fill the memory."""
    monkeypatch.setattr("loadtest.failover.answers.ANSWERS_MAX", 2)
    log = AnswerLog(SUBJECTS, connections=1)
    for _ in range(2):
        assert log.next_call(0) is not None
        log.ended(0, DRAINING, response(200), 0)
    assert log.next_call(0) is None


def test_stores__an_unknown_kind_is_refused(tmp_path: Any) -> None:
    """The error names the kinds that there are."""
    with pytest.raises(RedisServerError, match="sentinel, cluster"):
        start_store("memcached", tmp_path)


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_percentile__of_a_hundred(share: float, value: int) -> None:
    """The nearest rank."""
    assert percentile(range(1, 101), share) == value


@pytest.mark.parametrize(
    ("change", "is_safe", "is_kept"),
    [
        ({}, True, True),
        ({"p99_us": 125.0}, True, False),
        ({"growth_bytes": GROWTH_MAX_BYTES + 1}, False, False),
        ({"suspended_s": float("inf")}, False, False),
    ],
)
def test_hostile_peers__each_broken_promise_is_found(
    change: dict[str, Any], is_safe: bool, is_kept: bool
) -> None:
    """Latency counts by the median of its pairs, memory and suspensions by the worst round."""
    good = PeerRound(decoy_p99_us=100.0, p99_us=110.0, growth_bytes=0, suspended_s=0.1, scraped_s=0.1)
    once = PeerTrial("metrics", "silent", (good, replace(good, **change), good))
    assert once.is_safe is is_safe
    always = PeerTrial("metrics", "silent", (replace(good, **change),) * 3)
    assert (always.is_safe, always.is_kept) == (is_safe, is_kept)
