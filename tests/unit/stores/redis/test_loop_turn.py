"""The hooks of a loop turn: takes leave, replies that came are handed out, answers leave."""

from __future__ import annotations

from tests.store_harness import bucket

from .fakes import Bench, asked_of, full_reply

ACME = bucket("acme")


def test_before_turn_end__a_reply_that_came_meanwhile_is_handed_out_as_the_turn_ends() -> None:
    """Not a turn later, and after the turn's own takes have left; the answers are written once."""
    bench = Bench()
    bench.take("a", ACME)
    bench.loop.turn()
    bench.take("b", ACME)
    bench.link.arrived.append(full_reply(1))
    bench.loop.turn()
    assert [asked_of(call) for call in bench.link.commands] == [[1], [1]]
    assert list(bench.outcomes) == ["a"]
    assert bench.owner.answers == 1


def test_before_turn_end__all_replies_are_read_and_answers_written_once() -> None:
    """Also the one to the batch that has only just left, where the server was quick."""
    bench = Bench()
    bench.take("a", ACME)
    bench.loop.turn()
    bench.take("b", ACME)
    bench.link.arrived += [full_reply(1), full_reply(1)]
    bench.loop.turn()
    assert list(bench.outcomes) == ["a", "b"]
    assert bench.owner.answers == 1


def test_before_turn_end__reading_makes_room_for_queued_takes() -> None:
    """With the bound on batches in flight reached nothing can leave before a reply is read; then it does."""
    bench = Bench(in_flight_max=1)
    bench.take("a", ACME)
    bench.loop.turn()
    bench.take("b", ACME)
    bench.take("c", ACME)
    bench.link.arrived.append(full_reply(1))
    bench.loop.turn()
    assert [asked_of(call) for call in bench.link.commands] == [[1], [2]]
    assert list(bench.outcomes) == ["a"]


def test_before_turn_end__a_quick_server_cannot_keep_the_turn_from_ending() -> None:
    """At most as many replies as batches may be in flight are read: the loop has other work."""
    bench = Bench(in_flight_max=1, groups_max=1)
    for name in "abcdef":
        bench.take(name, bucket(name))
    bench.loop.turn()
    bench.take("g", bucket("g"))
    bench.link.arrived += [full_reply(1)] * 6
    bench.loop.turn()
    assert list(bench.outcomes) == ["a"]


def test_before_turn_end__replies_in_the_loops_own_time_are_written_at_once() -> None:
    """Whoever reads for the loop tells the end of each read."""
    bench = Bench()
    bench.take("a", ACME)
    bench.loop.turn()
    assert bench.owner.answers == 0, "there was nothing to read"
    bench.link.reply(full_reply(1))
    assert bench.owner.answers == 1


def test_after_read_batch__a_reply_is_read_between_the_reads_of_a_turn() -> None:
    """While the turn goes on to read: what was asked before it is answered at once."""
    bench = Bench()
    bench.take("a", ACME)
    bench.loop.turn()
    bench.take("b", ACME)
    bench.link.arrived.append(full_reply(1))
    bench.turn.after_read_batch()
    assert list(bench.outcomes) == ["a"]
    assert bench.owner.answers == 1
    assert len(bench.link.writes) == 1, "b waits for the end of its turn"
    bench.turn.after_read_batch()
    assert bench.owner.answers == 1, "there was nothing new to read"


def test_after_read_batch__many_takes_leave_before_their_turn_ends() -> None:
    """`early_takes_min` of them; what comes after them leaves when the turn ends."""
    bench = Bench(early_takes_min=3)
    for name in "ab":
        bench.take(name, ACME)
        bench.turn.after_read_batch()
    assert bench.link.writes == []
    bench.take("c", ACME)
    bench.turn.after_read_batch()
    assert [asked_of(call) for call in bench.link.commands] == [[3]]
    bench.take("d", ACME)
    bench.loop.turn()
    assert [asked_of(call) for call in bench.link.commands] == [[3], [1]]


def test_after_read_batch__a_lone_take_after_a_lone_take_leaves_at_once() -> None:
    """No turn of the loop passes between a lone request and its call, or a reply and its answer."""
    bench = Bench()
    for count, name in enumerate("abc"):
        bench.take(name, ACME)
        bench.turn.after_read_batch()
        assert len(bench.link.writes) == (count + 1 if count else 0), "the first shows that they come alone"
        bench.loop.turn()
        bench.link.reply(full_reply(1))
        assert bench.owner.answers == count + 1
    assert [asked_of(call) for call in bench.link.commands] == [[1], [1], [1]]


def test_after_read_batch__takes_that_come_together_wait_for_the_end_of_their_turn() -> None:
    """After a batch of several the next ones are expected to be several, too, until one comes alone."""
    bench = Bench()
    for names in ("ab", "cd", "e", "f"):
        for name in names:
            bench.take(name, ACME)
            bench.turn.after_read_batch()
        bench.loop.turn()
        bench.link.reply(full_reply(len(names)))
    assert [asked_of(call) for call in bench.link.commands] == [[2], [2], [1], [1]]


def test_after_read_batch__a_lone_take_waits_while_another_is_in_flight() -> None:
    """Then calls do not come one at a time: what comes meanwhile is sent together."""
    bench = Bench()
    bench.take("a", ACME)
    bench.loop.turn()
    for name in "bc":
        bench.take(name, ACME)
        bench.turn.after_read_batch()
    bench.loop.turn()
    assert [asked_of(call) for call in bench.link.commands] == [[1], [2]]


def test_after_read_batch__takes_wait_while_the_bound_on_batches_in_flight_is_reached() -> None:
    """Leaving early is no way around `in_flight_max`: a reply must come first."""
    bench = Bench(early_takes_min=2, in_flight_max=1)
    for name in "abcd":
        bench.take(name, ACME)
        bench.turn.after_read_batch()
    assert [asked_of(call) for call in bench.link.commands] == [[2]]
    bench.link.arrived.append(full_reply(2))
    bench.turn.after_read_batch()
    assert list(bench.outcomes) == ["a", "b"]
    bench.turn.after_read_batch()
    assert [asked_of(call) for call in bench.link.commands] == [[2], [2]]


def test_after_read_batch__in_a_cluster_takes_wait_for_the_end_of_their_turn() -> None:
    """There a small batch would be a call for each partition. Replies are read all the same."""
    bench = Bench(is_cluster=True, early_takes_min=1)
    bench.take("a", ACME)
    bench.turn.after_read_batch()
    assert bench.link.writes == []
    bench.loop.turn()
    bench.link.arrived.append(full_reply(1))
    bench.turn.after_read_batch()
    assert list(bench.outcomes) == ["a"]


def test_after_read_batch__without_takes_there_is_nothing_to_do() -> None:
    """A turn whose requests were all decided from memory costs no look at Redis."""
    bench = Bench()
    bench.link.arrived.append(full_reply(1))
    bench.turn.after_read_batch()
    assert len(bench.link.arrived) == 1
    assert bench.owner.answers == 0
