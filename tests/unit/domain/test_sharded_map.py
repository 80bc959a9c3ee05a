"""The sharded map: a dict that never changes, and whose edits leave it alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.sharded_map import SHARDS, ShardedMap

KEYS = st.text(st.sampled_from("abc"), max_size=3)
MEMBERS = st.dictionaries(KEYS, st.integers())
EDITS = st.lists(st.tuples(KEYS, st.none() | st.integers()))


@given(MEMBERS, EDITS)
def test_sharded_map__is_what_a_dict_would_be_after_the_same_edits(
    members: dict[str, int], edits: list[tuple[str, int | None]]
) -> None:
    """Puts and pops, in any order, have the same results and leave the same members as with a dict."""
    model, edit = dict(members), ShardedMap.of(members).edit()
    for key, value in edits:
        if value is None:
            assert edit.pop(key) == model.pop(key, None)
        else:
            edit.put(key, value)
            model[key] = value
        assert edit.get(key) == model.get(key)
    edited = edit.done()
    assert (dict(edited), len(edited)) == (model, len(model))
    assert all(key in edited and edited[key] == edited.get(key) == model[key] for key in model)


@given(MEMBERS, EDITS)
def test_sharded_map__an_edit_does_not_change_what_it_was_made_from(
    members: dict[str, int], edits: list[tuple[str, int | None]]
) -> None:
    """The map before stays as it was, however its copy is changed."""
    before = ShardedMap.of(members)
    edit = before.edit()
    for key, value in edits:
        if value is None:
            edit.pop(key)
        else:
            edit.put(key, value)
    edit.done()
    assert (dict(before), len(before)) == (members, len(members))


def test_sharded_map__knows_nothing_that_is_not_in_it() -> None:
    """A missing member is missing in every way that a dict has."""
    held = ShardedMap.of({"a": 1})
    assert "b" not in held
    assert held.get("b") is None
    assert held.get("b", 7) == 7
    assert ShardedMap.of(held) is held


def test_sharded_map__a_change_copies_one_shard_and_shares_all_others() -> None:
    """Of 10,000 members a change of one leaves all shards but one the very same objects."""
    before = ShardedMap.of({str(number): number for number in range(10_000)})
    edit = before.edit()
    edit.put("77", -1)
    after = edit.done()
    same = sum(old is new for old, new in zip(before.shards, after.shards, strict=True))
    assert same == SHARDS - 1
