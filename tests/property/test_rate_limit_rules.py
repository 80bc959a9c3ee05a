"""Which rule a descriptor meets: against a plain reading of the original's rules, for any tree."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.rate_limits.rules import (
    KEY_CHARS_MAX,
    Domain,
    Limit,
    Node,
    Rule,
    Unit,
    Wildcard,
    bounded,
    counter_of,
    part_of,
)

LETTERS = "ab_*"
words = st.text("ab_", max_size=4)
patterns = st.text(LETTERS, max_size=4)
entry_lists = st.lists(st.tuples(st.text("ab_", min_size=1, max_size=3), words), min_size=1, max_size=3)


@dataclass
class Plain:
    """One configured descriptor: its text, and what is below it in file order."""

    text: str
    number: int
    is_limited: bool
    is_shared: bool
    below: list[Plain] = field(default_factory=list)


@st.composite
def trees(draw: st.DrawFn, depth: int = 0) -> list[Plain]:
    """Some siblings with different texts, each with some below it."""
    found: dict[str, Plain] = {}
    for _ in range(draw(st.integers(0, 3))):
        key, value = draw(st.text(LETTERS, min_size=1, max_size=3)), draw(patterns)
        text = f"{key}_{value}" if value else key
        number = draw(st.integers(0, 10**9))
        is_shared = "*" in text and draw(st.booleans())
        below = draw(trees(depth + 1)) if depth < 2 else []
        found.setdefault(text, Plain(text, number, draw(st.booleans()), is_shared, below))
    return list(found.values())


def compiled(tree: list[Plain]) -> Domain:
    """The tree as the program has it."""
    domain = Domain("d")

    def add(parent: Node, plains: list[Plain]) -> None:
        for plain in plains:
            limit = Limit(Unit.DAY, plain.number) if plain.is_limited else None
            node = Node(Rule("", limit, shared_pattern=plain.text if plain.is_shared else None))
            assert parent.add(plain.text, node)
            add(node, plain.below)

    add(domain.root, tree)
    return domain


def looked_up(tree: list[Plain], entries: list[tuple[str, str]]) -> Plain | None:
    """Exact, then wildcards in file order, then the key alone; no way back; only the last entry counts."""
    found: Plain | None = None
    for key, value in entries:
        text = f"{key}_{value}"
        exact = [plain for plain in tree if value and plain.text == text]
        wild = [plain for plain in tree if "*" in plain.text and fits(plain.text, text)]
        keyed = [plain for plain in tree if plain.text == key]
        found = next(iter((*exact, *wild, *keyed)), None)
        if found is None:
            return None
        tree = found.below
    return found if found is not None and found.is_limited else None


def fits(pattern: str, text: str) -> bool:
    """The same as a regular expression."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None


@given(trees(), entry_lists)
def test_match__is_the_originals(tree: list[Plain], entries: list[tuple[str, str]]) -> None:
    """Any descriptor meets the rule that a plain walk finds, in any tree."""
    expected, match = looked_up(tree, entries), compiled(tree).match(entries)
    assert (expected is None) == (match is None)
    if expected is not None and match is not None:
        assert match.rule.limit == Limit(Unit.DAY, expected.number)


@given(st.text("ab*\n", max_size=8), st.text("ab\n", max_size=10))
def test_wildcard__is_a_regular_expression(pattern: str, text: str) -> None:
    """Each '*' is any text; the fixed pieces are there in order and do not overlap."""
    pattern += "*"
    assert Wildcard(pattern).fits(text) == fits(pattern, text)
    assert Wildcard("x" + pattern + "y").fits(f"x{text}y") == fits(pattern, text)


@given(
    st.lists(st.tuples(st.text(), st.text()), max_size=4),
    st.lists(st.tuples(st.text(), st.text()), max_size=4),
)
def test_counter__differs_where_entries_do(left: list[tuple[str, str]], right: list[tuple[str, str]]) -> None:
    """Keys and values part as the client wrote them, whatever characters are in them."""
    assert (counter_of(left) == counter_of(right)) == (left == right)
    assert len(counter_of(left)) <= KEY_CHARS_MAX


@given(st.text(min_size=KEY_CHARS_MAX + 1, max_size=KEY_CHARS_MAX + 20))
def test_counter__a_long_key_is_short_in_the_store(text: str) -> None:
    """A caller cannot make a key longer than the bound, and a hash is never taken for a short key."""
    assert len(bounded(text)) <= KEY_CHARS_MAX
    assert bounded(text) != bounded(text + "x")
    assert bounded(text)[0] not in part_of("a", "b")


def test_match__shares_a_counter_only_where_it_is_reported_to() -> None:
    """A shared pattern means the value at its level, also when the limit is deeper."""
    domain = Domain("d")
    shared = Node(Rule("", shared_pattern="file_pub/*"))
    domain.root.add("file_pub/*", shared)
    shared.add("user", Node(Rule("", Limit(Unit.DAY, 1))))

    def counter(file: str, user: str) -> str:
        match = domain.match([("file", file), ("user", user)])
        assert match is not None
        return match.counter

    assert counter("pub/a", "ann") == counter("pub/b", "ann")
    assert counter("pub/a", "ann") != counter("pub/a", "bob")
