"""A pipeline to one node: what leaves together, and that everybody is answered once and in time."""

from __future__ import annotations

import pytest

from sidecar.domain.bucket import Taken
from sidecar.stores.protocols import StoreFault
from sidecar.stores.redis.replies import Remedy
from tests.store_harness import bucket

from .fakes import SERVER_NOW_US, Bench, asked_of, error, full_reply

ACME, GLOBEX = bucket("acme"), bucket("globex")
SECOND_US = 1_000_000


def test_node_pipeline__takes_of_one_turn_leave_together() -> None:
    """One write, one call, equal takes merged; each is answered in its turn."""
    bench = Bench()
    bench.take("a", ACME)
    bench.take("b", GLOBEX)
    bench.take("c", ACME, asked=2)
    assert bench.link.writes == []
    bench.loop.turn()
    [[call]] = bench.link.writes
    assert asked_of(call) == [3, 1]
    bench.link.reply(full_reply(3, 1))
    assert bench.outcomes == {
        "a": Taken(1, 2, 0, SERVER_NOW_US + SECOND_US),
        "b": Taken(1, 2, 0, SERVER_NOW_US + SECOND_US),
        "c": Taken(2, 0, SECOND_US, SERVER_NOW_US + 3 * SECOND_US),
    }


def test_node_pipeline__an_idle_node_is_asked_at_once() -> None:
    """A lone take waits for nobody: it leaves at the end of its turn."""
    bench = Bench()
    bench.take("a", ACME)
    bench.loop.turn()
    assert len(bench.link.writes) == 1


def test_node_pipeline__while_batches_are_in_flight_the_next_one_gathers() -> None:
    """At most `in_flight_max` batches are on their way; a reply lets all that has gathered leave at once."""
    bench = Bench(in_flight_max=2)
    for name in "abcde":
        bench.take(name, ACME)
        bench.loop.turn()
    assert len(bench.link.writes) == 2
    bench.link.reply(full_reply(1))
    assert [asked_of(call) for call in bench.link.commands] == [[1], [1], [3]]
    bench.link.reply(full_reply(1))
    bench.link.reply(full_reply(3))
    assert sorted(bench.outcomes) == list("abcde")


def test_node_pipeline__a_turn_sends_once_also_when_a_reply_comes_within_it() -> None:
    """Takes that came before and after a reply of the same turn share one write, with what had gathered."""
    bench = Bench(in_flight_max=2)
    bench.take("a", ACME)
    bench.loop.turn()
    bench.take("b", ACME)
    bench.link.reply(full_reply(1))
    assert len(bench.link.writes) == 1
    bench.take("c", ACME)
    bench.loop.turn()
    assert [asked_of(call) for call in bench.link.commands] == [[1], [2]]


def test_node_pipeline__a_batch_has_a_largest_size() -> None:
    """More groups than `groups_max` leave as several batches, in order."""
    bench = Bench(groups_max=4, in_flight_max=8)
    for index in range(10):
        bench.take(str(index), bucket(f"b{index}"))
    bench.loop.turn()
    assert [len(asked_of(call)) for call in bench.link.commands] == [4, 4, 2]


def test_node_pipeline__keys_of_a_batch_have_a_largest_number() -> None:
    """Sets of many buckets fill a batch sooner."""
    bench = Bench(keys_max=6, in_flight_max=8)
    for index in range(6):
        bench.take(str(index), bucket(f"b{index}"))
    bench.loop.turn()
    assert [len(asked_of(call)) for call in bench.link.commands] == [3, 3]


def test_node_pipeline__asked_never_passes_what_the_script_holds() -> None:
    """Equal takes that together ask for 2**31 or more are not merged."""
    bench = Bench()
    bench.take("a", ACME, asked=2**31 - 1)
    bench.take("b", ACME)
    bench.loop.turn()
    assert [asked_of(call) for call in bench.link.commands] == [[2**31 - 1], [1]]


def test_node_pipeline__in_a_cluster_each_partition_has_its_call() -> None:
    """One write holds one call for each partition of the batch, and the batch ends with its last reply."""
    bench = Bench(is_cluster=True, in_flight_max=1)
    sets = [bucket(f"owner{index}") for index in range(40)]
    for index, buckets in enumerate(sets):
        bench.take(str(index), buckets)
    bench.loop.turn()
    [calls] = bench.link.writes
    tags = [{key[: key.index(b"}")] for key in call[3:-2]} for call in calls]
    assert all(len(tag) == 1 for tag in tags)
    assert len({tag for call_tags in tags for tag in call_tags}) == len(calls) > 1
    bench.take("later", ACME)
    bench.loop.turn()
    for call in calls:
        assert len(bench.link.writes) == 1
        bench.link.reply(full_reply(*asked_of(call)))
    assert len(bench.link.writes) == 2
    assert len(bench.outcomes) == 40


def test_node_pipeline__a_full_queue_refuses() -> None:
    """Takes past `queue_takes_max` are refused as overloaded, in the next turn, and the others go on."""
    bench = Bench(queue_takes_max=3)
    for name in "abcde":
        bench.take(name, ACME)
    assert bench.outcomes == {}
    bench.loop.turn()
    assert bench.outcomes == {"d": StoreFault.OVERLOADED, "e": StoreFault.OVERLOADED}
    bench.link.reply(full_reply(3))
    assert set(bench.outcomes) == set("abcde")
    assert bench.count("faults_total", "overloaded") == 2


def test_node_pipeline__without_a_link_takes_are_refused() -> None:
    """Not connected yet: the answer is UNAVAILABLE, a turn later, never from within the call."""
    bench = Bench(is_linked=False)
    bench.take("a", ACME)
    assert bench.outcomes == {}
    bench.loop.turn()
    assert bench.outcomes == {"a": StoreFault.UNAVAILABLE}


def test_node_pipeline__a_take_is_answered_within_its_own_time() -> None:
    """A take with less patience is told TIMEOUT before the others; a late reply is for those who wait."""
    bench = Bench()
    bench.take("hasty", ACME, timeout_s=0.01)
    bench.take("patient", ACME, timeout_s=0.04)
    bench.loop.turn()
    bench.loop.advance(0.01)
    assert bench.outcomes == {"hasty": StoreFault.TIMEOUT}
    bench.link.reply(full_reply(2))
    # The script has counted the hasty take: the other one gets the second token.
    assert bench.outcomes["patient"] == Taken(1, 1, 0, SERVER_NOW_US + 2 * SECOND_US)
    bench.loop.advance(1)
    assert len(bench.outcomes) == 2


def test_node_pipeline__no_time_at_all_is_answered_too() -> None:
    """A caller whose deadline has passed is told in the next turns."""
    bench = Bench()
    bench.take("a", ACME, timeout_s=0.0)
    bench.loop.turn()
    bench.loop.advance(0.0)
    assert bench.outcomes == {"a": StoreFault.TIMEOUT}


def test_node_pipeline__a_take_that_expires_unsent_is_not_taken() -> None:
    """What nobody waits for any more is left out of the call."""
    bench = Bench(in_flight_max=1, call_timeout_s=1, link_timeout_s=2)
    bench.take("first", ACME, timeout_s=1)
    bench.loop.turn()
    bench.take("expires", ACME, timeout_s=0.01)
    bench.take("stays", ACME, timeout_s=1)
    bench.take("alone", GLOBEX, timeout_s=0.01)
    bench.loop.turn()
    bench.loop.advance(0.02)
    assert bench.outcomes == {"expires": StoreFault.TIMEOUT, "alone": StoreFault.TIMEOUT}
    bench.link.reply(full_reply(1))
    assert [asked_of(call) for call in bench.link.commands] == [[1], [1]]


def test_node_pipeline__when_the_loop_stood_still_replies_come_first() -> None:
    """A loop that was held up does not blame the server before it has read what came meanwhile."""
    bench = Bench()
    bench.take("a", ACME)
    bench.loop.turn()
    bench.loop.stall(0.2)
    assert bench.outcomes == {}
    bench.link.reply(full_reply(1))
    bench.loop.advance(0.1)
    assert isinstance(bench.outcomes["a"], Taken)
    assert bench.pipeline.refusal is None


def test_node_pipeline__a_lost_script_is_loaded_once() -> None:
    """NOSCRIPT: load and call again without a wait, within the same deadline; a second one is a fault."""
    bench = Bench()
    bench.take("a", ACME)
    bench.loop.turn()
    bench.link.reply(error("NOSCRIPT No matching script. Please use EVAL."))
    [load], [again] = bench.link.writes[1:]
    assert load[:2] == [b"SCRIPT", b"LOAD"]
    assert again == bench.link.writes[0][0]
    bench.link.reply(load[1])
    bench.link.reply(error("NOSCRIPT No matching script. Please use EVAL."))
    assert bench.outcomes == {"a": StoreFault.UNAVAILABLE}
    assert len(bench.link.writes) == 3


def test_node_pipeline__a_lost_script_is_not_loaded_for_nobody() -> None:
    """When everybody has been told TIMEOUT, the call is not repeated: it would take tokens for nobody."""
    bench = Bench(call_timeout_s=1, link_timeout_s=2)
    bench.take("a", ACME, timeout_s=0.01)
    bench.loop.turn()
    bench.loop.advance(0.02)
    bench.link.reply(error("NOSCRIPT No matching script."))
    assert len(bench.link.writes) == 1


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("MOVED 42 10.0.0.1:6379", Remedy.FIND_NODES),
        ("ASK 42 10.0.0.1:6379", Remedy.FIND_NODES),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Remedy.FIND_NODES),
        ("CLUSTERDOWN Hash slot not served", Remedy.FIND_NODES),
        ("NOREPLICAS Not enough good replicas to write.", Remedy.FIND_NODES),
        ("READONLY You can't write against a read only replica. script: ab", Remedy.FIND_PRIMARY),
        ("MASTERDOWN Link with MASTER is down", Remedy.FIND_PRIMARY),
        ("LOADING Redis is loading the dataset in memory", Remedy.WAIT),
        ("BUSY Redis is busy running a script.", Remedy.WAIT),
        ("OOM command not allowed when used memory > 'maxmemory'.", Remedy.LOG),
        ("NOPERM this user has no permissions", Remedy.LOG),
        ("ERR something else", Remedy.LOG),
    ],
)  # fmt: skip
def test_node_pipeline__an_error_fails_its_takes_without_another_call(text: str, remedy: Remedy) -> None:
    """No retry inside a decision: one call, one answer, and the owner learns the remedy."""
    bench = Bench()
    bench.take("a", ACME)
    bench.loop.turn()
    bench.link.reply(error(text))
    assert bench.outcomes == {"a": StoreFault.UNAVAILABLE}
    assert len(bench.link.writes) == 1
    assert bench.owner.errors == [(text, remedy)]
    assert bench.link.is_aborted == (remedy is Remedy.FIND_PRIMARY)


@pytest.mark.parametrize(
    "reply", [None, b"OK", [], [1], [1, 2], [1, 2, 3, 4], [1, b"2", 3], [1, 2.5, 3], [[1, 2, 3]]]
)
def test_node_pipeline__a_reply_of_another_shape_is_a_fault(reply: object) -> None:
    """A server that runs something else is not believed, and a person is told."""
    bench = Bench()
    bench.take("a", ACME)
    bench.loop.turn()
    bench.link.reply(reply)
    assert bench.outcomes == {"a": StoreFault.UNAVAILABLE}
    assert [remedy for _, remedy in bench.owner.errors] == [Remedy.LOG]


def test_node_pipeline__a_newer_record_is_reported_to_owner_and_callers() -> None:
    """-1 - generation: nothing was taken, the others of the call are answered."""
    bench = Bench()
    bench.take("old", ACME)
    bench.take("gone", GLOBEX)
    bench.take("good", bucket("initech"))
    bench.loop.turn()
    bench.link.reply([SERVER_NOW_US, -1 - 7, -1, 1, SERVER_NOW_US])
    assert bench.outcomes["old"] is bench.outcomes["gone"] is StoreFault.SUPERSEDED
    assert isinstance(bench.outcomes["good"], Taken)
    assert bench.owner.newer == [("acme", 7), ("globex", 0)]


def test_node_pipeline__an_empty_bucket_is_reported_to_the_owner() -> None:
    """With the server's time and the moment of sending, which bound how long it stays empty."""
    bench = Bench()
    bench.take("a", ACME, asked=3)
    bench.take("peek", GLOBEX, asked=0)
    sent_s = bench.loop.now_s
    bench.loop.turn()
    bench.loop.advance(0.01)
    empty_us = SERVER_NOW_US + 3 * SECOND_US
    bench.link.reply([SERVER_NOW_US, 3, SERVER_NOW_US, 0, empty_us])
    assert bench.owner.empty == [(ACME, Taken(3, 0, SECOND_US, empty_us), SERVER_NOW_US, sent_s)]


def test_node_pipeline__a_lost_link_fails_only_what_has_left() -> None:
    """A take that was sent is not repeated, it may have been carried out; one that was not waits."""
    bench = Bench(in_flight_max=1)
    bench.take("sent", ACME)
    bench.loop.turn()
    bench.take("gathering", GLOBEX)
    bench.lose_link()
    assert bench.outcomes == {"sent": StoreFault.UNAVAILABLE}
    bench.take("after", ACME)
    bench.loop.turn()
    assert bench.owner.lost_links == 1
    link = bench.attach()
    assert len(link.writes) == 1
    link.reply(full_reply(1, 1))
    assert isinstance(bench.outcomes["gathering"], Taken) and isinstance(bench.outcomes["after"], Taken)
    assert bench.owner.states == [None, None]


def test_node_pipeline__a_link_that_cannot_be_reopened_fails_everybody() -> None:
    """The first failed attempt to connect tells those who wait, and takes are refused until there is one."""
    bench = Bench(in_flight_max=1)
    bench.lose_link()
    bench.take("waiting", ACME)
    bench.loop.turn()
    bench.fail_to_reopen()
    bench.take("after", ACME)
    bench.loop.turn()
    assert bench.outcomes == {"waiting": StoreFault.UNAVAILABLE, "after": StoreFault.UNAVAILABLE}
    bench.attach()
    bench.take("again", ACME)
    bench.loop.turn()
    bench.link.reply(full_reply(1))
    assert isinstance(bench.outcomes["again"], Taken)
    assert bench.owner.states == [None, StoreFault.UNAVAILABLE, None]


def test_node_pipeline__a_link_that_takes_long_to_reopen_is_not_waited_for() -> None:
    """A host that swallows connections: takes wait for one call's time, those that follow not at all."""
    bench = Bench(call_timeout_s=0.05)
    bench.lose_link()
    bench.take("patient", ACME, timeout_s=10)
    bench.take("hasty", GLOBEX, timeout_s=0.02)
    bench.loop.advance(0.03)
    assert bench.outcomes == {"hasty": StoreFault.TIMEOUT}
    bench.loop.advance(0.03)
    assert bench.outcomes["patient"] is StoreFault.UNAVAILABLE
    assert bench.pipeline.refusal is StoreFault.UNAVAILABLE


def test_node_pipeline__a_link_that_was_given_up_is_not_waited_for() -> None:
    """The server is a replica, or answers nonsense: the next connection will not be better at once."""
    bench = Bench()
    bench.take("a", ACME)
    bench.loop.turn()
    bench.link.reply(error("READONLY You can't write against a read only replica."))
    bench.take("b", GLOBEX)
    bench.pipeline.detach()
    assert bench.outcomes == {"a": StoreFault.UNAVAILABLE, "b": StoreFault.UNAVAILABLE}


def test_node_pipeline__a_link_that_closed_unnoticed_is_waited_for() -> None:
    """Between the end of a connection and its reconnector's notice a take waits, as it does after that."""
    bench = Bench()
    bench.link.end()
    bench.take("a", ACME)
    bench.loop.turn()
    bench.pipeline.detach()
    bench.attach().reply(full_reply(1))
    assert isinstance(bench.outcomes["a"], Taken)


def test_node_pipeline__a_node_that_does_not_answer_is_not_waited_for() -> None:
    """After `breaker_failures_max` overdue calls takes are refused at once, also those that gathered."""
    bench = Bench(in_flight_max=3, breaker_failures_max=3)
    for name in "abc":
        bench.take(name, ACME)
        bench.loop.turn()
    bench.take("gathering", ACME, timeout_s=0.2)
    bench.loop.turn()
    bench.loop.advance(0.05)
    assert bench.outcomes == {
        **dict.fromkeys("abc", StoreFault.TIMEOUT),
        "gathering": StoreFault.UNAVAILABLE,
    }
    assert bench.owner.states[-1] is StoreFault.UNAVAILABLE
    assert bench.count("breaker_trips_total") == bench.count("breakers_open") == 1


def trip(**limits: float) -> Bench:
    """A bench whose breaker has just opened over calls that are still unanswered."""
    bench = Bench(in_flight_max=1, breaker_failures_max=1, **limits)
    bench.take("a", ACME)
    bench.loop.turn()
    bench.loop.advance(0.05)
    assert bench.pipeline.refusal is StoreFault.UNAVAILABLE
    return bench


def next_probe(bench: Bench) -> None:
    """Let time pass until the next probe goes out, within a second."""
    before = len(bench.link.commands)
    for _ in range(100):
        bench.loop.advance(0.01)
        if len(bench.link.commands) > before:
            return
    raise AssertionError("no probe within a second")


def test_node_pipeline__a_probe_in_time_closes_the_breaker() -> None:
    """After `probe_after_s` an empty call goes out; answered in time, takes are sent again."""
    bench = trip(link_timeout_s=10)
    bench.loop.advance(0.2)
    probe = bench.link.commands[-1]
    assert (probe[0], probe[2], probe[-1]) == (b"EVALSHA", b"0", b"")
    bench.link.reply(full_reply(1))
    bench.link.reply([SERVER_NOW_US])
    assert bench.pipeline.refusal is None
    assert bench.count("breakers_open") == 0
    bench.take("b", ACME)
    bench.loop.turn()
    bench.link.reply(full_reply(1))
    assert isinstance(bench.outcomes["b"], Taken)


def test_node_pipeline__a_sign_of_life_is_followed_by_a_probe_at_once() -> None:
    """A late reply ends the wait for the probe, but not the refusal: the node may still be slow."""
    bench = trip(link_timeout_s=10)
    bench.link.reply(full_reply(1))
    assert bench.pipeline.refusal is StoreFault.UNAVAILABLE
    bench.loop.advance(0.001)
    bench.link.reply([SERVER_NOW_US])
    assert bench.pipeline.refusal is None


def test_node_pipeline__a_late_probe_keeps_the_breaker_open() -> None:
    """A node that answers, but too late, is not given takes; it is probed again and again."""
    bench = trip(link_timeout_s=10)
    bench.link.reply(full_reply(1))
    for _ in range(3):
        next_probe(bench)
        before = len(bench.link.commands)
        bench.loop.advance(0.3)
        assert len(bench.link.commands) == before, "one probe at a time"
        bench.link.reply([SERVER_NOW_US])
        assert bench.pipeline.refusal is StoreFault.UNAVAILABLE
    next_probe(bench)
    bench.link.reply([SERVER_NOW_US])
    assert bench.pipeline.refusal is None


def test_node_pipeline__a_failed_probe_keeps_the_breaker_open() -> None:
    """A node that is loading its data says so to the probe."""
    bench = trip(link_timeout_s=10)
    bench.link.reply(full_reply(1))
    bench.loop.advance(0.001)
    bench.link.reply(error("LOADING Redis is loading the dataset in memory"))
    assert bench.pipeline.refusal is StoreFault.UNAVAILABLE
    next_probe(bench)
    bench.link.reply([SERVER_NOW_US])
    assert bench.pipeline.refusal is None


def test_node_pipeline__a_probe_of_a_server_without_the_script_loads_it() -> None:
    """NOSCRIPT is a sign of health."""
    bench = trip(link_timeout_s=10)
    bench.link.reply(full_reply(1))
    bench.loop.advance(0.001)
    bench.link.reply(error("NOSCRIPT No matching script."))
    assert bench.pipeline.refusal is None
    assert bench.link.commands[-1][:2] == [b"SCRIPT", b"LOAD"]


def test_node_pipeline__a_call_without_any_reply_ends_the_link() -> None:
    """Replies come in order, so a lost one blocks the connection: it is given up after `link_timeout_s`."""
    bench = Bench(link_timeout_s=0.4)
    bench.take("a", ACME)
    bench.loop.turn()
    bench.loop.advance(0.39)
    assert not bench.link.is_closed
    bench.loop.advance(0.02)
    assert bench.link.is_closed


def test_node_pipeline__an_idle_link_is_probed() -> None:
    """Once every `keepalive_s` without traffic; a dead peer is noticed and the link given up."""
    bench = Bench(keepalive_s=1.0)
    for _ in range(3):
        bench.loop.advance(1.01)
        bench.link.reply([SERVER_NOW_US])
    assert len(bench.link.commands) == 3
    bench.loop.advance(1.0 + 0.4 + 0.01)
    assert bench.link.is_closed
    bench.pipeline.detach()
    assert bench.owner.states == [None, StoreFault.UNAVAILABLE]


def test_node_pipeline__every_reply_may_tell_the_time() -> None:
    """A probe does, and a take, ten times a second at most; one that came late is no measure of it."""
    bench = Bench(keepalive_s=1.0, call_timeout_s=0.05)
    assert bench.clock.now_us() == 0, "our own, until the store has reported its time"
    bench.loop.advance(1.01)
    bench.link.reply([SERVER_NOW_US])
    assert bench.clock.now_us() == SERVER_NOW_US
    reported = []
    for index, wait_s in enumerate((0.05, 0.04, 0.2, 0.2)):
        bench.loop.advance(wait_s)
        bench.take(str(index), ACME)
        bench.loop.turn()
        bench.loop.advance(0.06 if index == 2 else 0)
        bench.link.reply([SERVER_NOW_US + index, 1, SERVER_NOW_US])
        reported.append(bench.clock.now_us() - SERVER_NOW_US)
    assert reported == [0, 0, 0, 3]
    bench.pipeline.detach()
    assert bench.clock.now_us() == SERVER_NOW_US + 3, "the last that was known"


def test_node_pipeline__traffic_needs_no_probe() -> None:
    """A link that is in use is not probed."""
    bench = Bench(keepalive_s=1.0)
    for index in range(10):
        bench.take(str(index), ACME)
        bench.loop.turn()
        bench.link.reply(full_reply(1))
        bench.loop.advance(0.5)
    assert len(bench.link.commands) == 10


def test_node_pipeline__a_new_link_closes_the_breaker() -> None:
    """The handshake has proved the node."""
    bench = trip()
    bench.lose_link()
    bench.attach()
    assert bench.pipeline.refusal is None
    assert bench.count("breakers_open") == 0
    assert bench.count("connections_open") == 1


def test_node_pipeline__close_answers_everybody() -> None:
    """In flight and gathering alike; nothing fires afterwards and the gauges are back."""
    bench = Bench(in_flight_max=1)
    bench.take("sent", ACME)
    bench.loop.turn()
    bench.take("gathering", GLOBEX)
    bench.pipeline.close()
    assert set(bench.outcomes.values()) == {StoreFault.UNAVAILABLE} and len(bench.outcomes) == 2
    assert all(timer.is_cancelled for timer in bench.loop.timers)
    bench.loop.advance(10)
    assert bench.count("connections_open") == bench.count("breakers_open") == 0


def test_node_pipeline__waits_by_one_timer() -> None:
    """A thousand takes in flight keep one timer, not a thousand."""
    bench = Bench()
    for index in range(1_000):
        bench.take(str(index), bucket(f"b{index % 50}"))
    bench.loop.turn()
    assert sum(not timer.is_cancelled for timer in bench.loop.timers) == 1


def test_node_pipeline__a_callback_that_raises_is_reported() -> None:
    """Also when it is told a fault."""
    bench = Bench()
    bench.take("a", ACME)
    bench.outcomes["a"] = StoreFault.TIMEOUT  # so that `done` raises: reported twice
    bench.take("b", GLOBEX)
    bench.loop.turn()
    bench.pipeline.close()
    assert bench.outcomes["b"] is StoreFault.UNAVAILABLE
    assert len(bench.loop.exceptions) == 1


def test_node_pipeline__a_primary_without_replicas_is_no_failure_of_the_node() -> None:
    """NOREPLICAS is a quick answer: each take fails, and no breaker opens and closes over it."""
    bench = Bench(breaker_failures_max=1)
    for name in "abc":
        bench.take(name, ACME)
        bench.loop.turn()
        bench.link.reply(error("NOREPLICAS Not enough good replicas to write."))
    assert bench.outcomes == dict.fromkeys("abc", StoreFault.UNAVAILABLE)
    assert (bench.pipeline.refusal, bench.count("breaker_trips_total")) == (None, 0)
