"""What take.lua is sent, what its reply must look like, and the share of each take."""

from __future__ import annotations

import struct

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.bucket import BucketSet, Level, Quota, Taken, draw_all
from sidecar.stores.redis.keys import KeySpace
from sidecar.stores.redis.scripts import TAKE
from sidecar.stores.redis.take_call import BUCKETS_MAX, CompiledSet, Group, apportion, encode_call, starts_of
from tests.store_harness import bucket

KEYS = KeySpace("t:")
NOW_US = 1_764_000_000_000_000


def group_of(buckets: BucketSet, *asked: int, checks: bool = False) -> tuple[Group, list[Taken]]:
    """A group of takes, and where their outcomes go."""
    group = Group(CompiledSet(buckets, KEYS, checks))
    reported: list[Taken] = []
    group.waiting = [(number, 0.0, reported.append) for number in asked]  # type: ignore[list-item]
    group.asked = sum(asked)
    return group, reported


def decoded(call: bytes) -> tuple[list[bytes], bytes, tuple[int, ...]]:
    """Keys, now and words of an encoded call."""
    reader = hiredis.Reader()
    reader.feed(call)
    command = reader.gets()
    assert reader.gets() is False, "one command and nothing behind it"
    assert command[:2] == [b"EVALSHA", TAKE.sha]
    keys = command[3 : 3 + int(command[2])]
    now, words = command[3 + len(keys) :]
    return keys, now, struct.unpack(f"<{len(words) // 4}I", words)


def test_encode__a_group_is_its_words() -> None:
    """Asked, cost, generation's key and value, then each bucket's key, interval and burst; keys each once."""
    quotas = (Quota(6_000, 7), Quota(60_000_000, 1_000_000))
    several = BucketSet("acme", 9, ("x", "y"), quotas, cost=4)
    single = BucketSet("acme", 9, ("y",), quotas[1:])
    groups = [group_of(several, 2, 3, checks=True)[0], group_of(single, 0, checks=True)[0]]
    keys, now, words = decoded(encode_call(groups))
    assert keys == [
        key.encode() for key in (KEYS.generation("acme"), KEYS.bucket("acme", "x"), KEYS.bucket("acme", "y"))
    ]
    assert now == b"0"
    assert words == (
        5,
        4,
        1,
        9,
        2,
        2,
        6_000,
        7,
        3,
        60_000_000,
        1_000_000,
        0,
        1,
        1,
        9,
        1,
        3,
        60_000_000,
        1_000_000,
    )


def test_encode__an_unchecked_generation_needs_no_key() -> None:
    """Number 0 instead of a key: do not look."""
    keys, _, words = decoded(encode_call([group_of(bucket(), 1)[0]]))
    assert (len(keys), words[2:4]) == (1, (0, 0))


def test_encode__an_empty_call_is_a_probe() -> None:
    """No key, no word."""
    assert decoded(encode_call(())) == ([], b"0", ())


def test_encode__the_clock_is_overridden_when_asked() -> None:
    """In tests."""
    assert decoded(encode_call((), NOW_US))[1] == str(NOW_US).encode()


def test_compiled__more_buckets_than_a_call_holds_are_refused() -> None:
    """The message names the owner and the bound."""
    names = [str(index) for index in range(BUCKETS_MAX + 1)]
    with pytest.raises(ValueError, match="'acme' takes from 65 buckets; the limit is 64"):
        CompiledSet(BucketSet("acme", 1, names, [Quota(6_000, 1)] * len(names)), KEYS, True)


@pytest.mark.parametrize("generation", [0, 2**32])
def test_compiled__a_generation_must_fit_its_word(generation: int) -> None:
    """Where it is checked; else it does not matter."""
    with pytest.raises(ValueError, match="generation of 'acme'"):
        CompiledSet(bucket(generation=generation), KEYS, True)
    CompiledSet(bucket(generation=generation), KEYS, False)


def test_starts__a_reply_is_cut_into_its_groups() -> None:
    """Admitted and one TAT a bucket; a superseded group has none."""
    quota = Quota(6_000, 7)
    groups = [
        group_of(BucketSet("a", 1, ("x", "y"), (quota, quota)), 1)[0],
        group_of(bucket("b"), 1)[0],
        group_of(bucket("c"), 1)[0],
    ]
    found = [(admitted, starts) for _, admitted, starts in starts_of(groups, [5, 1, 7, 8, -3, 0, 9])]
    assert found == [(1, [7, 8]), (-3, []), (0, [9])]


@given(
    asked=st.lists(st.just(1) | st.integers(0, 9), min_size=1, max_size=12),
    ahead=st.lists(st.integers(0, 700_000), min_size=1, max_size=3),
    burst=st.integers(1, 12),
    cost=st.integers(1, 4),
)
def test_apportion__each_take_gets_what_it_would_have_got_alone(
    asked: list[int], ahead: list[int], burst: int, cost: int
) -> None:
    """One by one in the order they came, by the spec itself; together what the script admits."""
    quota = Quota(50_000, burst)
    names = [str(index) for index in range(len(ahead))]
    buckets = BucketSet("acme", 1, names, [quota] * len(ahead), cost)
    starts = [NOW_US + min(lead, quota.span_us) for lead in ahead]
    group, reported = group_of(buckets, *asked)
    last = apportion(group, starts, NOW_US, pytest.fail)
    levels = [Level(start, quota.interval_us) for start in starts]
    merged, _ = draw_all(levels, buckets.quotas, sum(asked), cost, NOW_US)
    assert sum(taken.admitted for taken in reported) == merged.admitted
    assert last == reported[-1]
    assert Taken(last.admitted, merged.remaining, merged.retry_after_us, merged.reset_at_us) == last
    for wanted, taken in zip(asked, reported, strict=True):
        expected, drawn = draw_all(levels, buckets.quotas, wanted, cost, NOW_US)
        levels = levels if drawn is None else drawn
        assert taken == expected
