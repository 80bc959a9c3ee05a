"""YAML as a tree with line numbers."""

from __future__ import annotations

import pytest
import yaml

from sidecar.sources import yaml_nodes
from sidecar.sources.yaml_nodes import (
    ANCHORS_MAX,
    CANCEL_CHECK_EVENTS,
    DEPTH_MAX,
    SCALAR_CHARS_MAX,
    VALUES_MAX,
    ItemStream,
    YamlCancelledError,
    YamlEntry,
    YamlError,
    YamlList,
    YamlMap,
    YamlNode,
    YamlScalar,
    node_of,
    read_yaml,
    scalar_value,
)


@pytest.fixture(params=["with libyaml", "without libyaml"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parsers that PyYAML may have."""
    if request.param == "without libyaml":
        monkeypatch.setattr(yaml_nodes, "_Loader", yaml.SafeLoader)


@pytest.mark.usefixtures("parser")
def test_read_yaml__keeps_text_and_lines() -> None:
    """Values stay what was written, and everything knows its line."""
    assert read_yaml("a: no\nb:\n  - '1'\n  - 012\n") == YamlMap(
        {
            "a": YamlEntry(1, YamlScalar("no", True, 1)),
            "b": YamlEntry(2, YamlList([YamlScalar("1", False, 3), YamlScalar("012", True, 4)], 3)),
        },
        [],
        1,
    )


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "---\n# comment\n...\n"])
def test_read_yaml__empty_is_none(text: str) -> None:
    """A file without a value is no value, however it is empty."""
    assert read_yaml(text) is None


@pytest.mark.usefixtures("parser")
def test_read_yaml__repeated_keys_are_kept_apart() -> None:
    """A key that occurs twice is known, with the line of the second; YAML itself would just forget one."""
    node = read_yaml("a: 1\nb: 2\na: 3\n")
    assert isinstance(node, YamlMap)
    assert node.repeated == [("a", 3)]


@pytest.mark.usefixtures("parser")
def test_read_yaml__an_alias_is_its_anchor() -> None:
    """Aliases share the node, so a thousand of them cost nothing."""
    node = read_yaml("a: &office [192.0.2.0/24]\nb: *office\n")
    assert isinstance(node, YamlMap)
    assert node.entries["a"].node is node.entries["b"].node


def bomb(levels: int) -> str:
    """Aliases of aliases: each level repeats the one before ten times."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.usefixtures("parser")
def test_read_yaml__a_bomb_of_aliases_is_refused() -> None:
    """Aliases count as all that they repeat, because anyone who walks the tree meets it again and again."""
    assert read_yaml(bomb(4)) is not None
    with pytest.raises(YamlError, match=f"more than {VALUES_MAX} values, aliases counted in full") as caught:
        read_yaml(bomb(9))
    assert caught.value.line == 5


def test_read_yaml__values_have_a_bound() -> None:
    """The value beyond the bound is named by its line."""
    assert read_yaml("- a\n" * (VALUES_MAX - 1)) is not None
    with pytest.raises(YamlError, match="values, aliases counted in full") as caught:
        read_yaml("- a\n" * 10 * VALUES_MAX)
    assert caught.value.line == VALUES_MAX


@pytest.mark.usefixtures("parser")
def test_read_yaml__a_ladder_of_aliases_is_not_deep() -> None:
    """Depth counts through aliases: each step of a ladder is one level more for anyone who walks it."""
    steps = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, DEPTH_MAX + 5))]
    assert read_yaml("\n".join(steps[: DEPTH_MAX - 2])) is not None
    with pytest.raises(YamlError, match=r"nested deeper than 32 levels by the alias '\*a\d+'") as caught:
        read_yaml("\n".join(steps))
    assert caught.value.line == DEPTH_MAX


@pytest.mark.usefixtures("parser")
def test_read_yaml__anchors_have_a_bound() -> None:
    """Each anchor is kept to the end of the file."""
    with pytest.raises(YamlError, match="more than 1000 anchors"):
        read_yaml("".join(f"- &a{n} x\n" for n in range(ANCHORS_MAX + 1)))


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("text", ["a: {}", "{}: a", "- [1, '{}']", "a: |\n  {}"])
def test_read_yaml__texts_have_a_bound(text: str) -> None:
    """A value or a key may be as long as anything that means something."""
    with pytest.raises(YamlError, match=r"it must have at most 65536|while scanning a simple key"):
        read_yaml(text.replace("{}", "x" * (SCALAR_CHARS_MAX + 1)))


def test_read_yaml__streamed_items_are_not_kept() -> None:
    """Items are handed out one by one with their number, and bounds hold for each of them."""
    taken: list[tuple[int, YamlNode]] = []
    text = "a: 1\nlist:\n- x\n- [y]\n"
    stream = ItemStream("list", lambda number, node: taken.append((number, node)), 10)
    root = read_yaml(text.encode(), stream)
    assert isinstance(root, YamlMap)
    assert root.entries["list"].node == YamlList([], 2)
    assert taken == [(0, YamlScalar("x", True, 3)), (1, YamlList([YamlScalar("y", True, 4)], 4))]
    with pytest.raises(YamlError, match="the file has more than 10 values"):
        read_yaml("list:\n" + "- x\n" * 20, stream)
    with pytest.raises(YamlError, match="values, aliases counted in full"):
        read_yaml(f"list:\n- [{'x, ' * VALUES_MAX}]", stream._replace(values_max=1 << 30))


def test_read_yaml__anchors_of_streamed_items_count() -> None:
    """What anchors keep of items that are handed out counts until the end."""
    stream = ItemStream("list", lambda number, node: None, 1 << 30)
    item = "[" + "x, " * (VALUES_MAX // 10) + "]"
    with pytest.raises(YamlError, match="values, aliases counted in full") as caught:
        read_yaml("list:\n" + "".join(f"- &a{n} {item}\n" for n in range(20)), stream)
    assert 5 <= caught.value.line <= 12


@pytest.mark.usefixtures("parser")
def test_read_yaml__can_be_cancelled() -> None:
    """Reading ends within some hundred values after it is cancelled."""
    with pytest.raises(YamlCancelledError):
        read_yaml("- a\n" * CANCEL_CHECK_EVENTS, is_cancelled=lambda: True)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [1\n", 3),
        ("a: 1\n\tb: 2\n", 2),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: *nowhere\n", 1),
        ("[a]: 1\n", 1),
        ("a: 1\n? {b: 1}\n: 2\n", 2),
        ("a:\n  " + "[" * 40 + "]" * 40, 2),
    ],
)
def test_read_yaml__refuses_with_the_line(text: str, line: int) -> None:
    """What cannot be read says where."""
    with pytest.raises(YamlError) as caught:
        read_yaml(text)
    assert caught.value.line == line


@pytest.mark.usefixtures("parser")
def test_read_yaml__a_forbidden_character_is_no_crash() -> None:
    """NUL is not YAML; both parsers' own errors become ours."""
    with pytest.raises(YamlError, match="not YAML"):
        read_yaml("a: \0")


@pytest.mark.usefixtures("parser")
def test_read_yaml__tags_mean_nothing() -> None:
    """A tag never becomes a Python object: its value is text."""
    node = read_yaml("a: !!python/object/apply:os.system ['true']\n")
    assert isinstance(node, YamlMap)
    assert node.entries["a"].node == YamlList([YamlScalar("true", False, 1)], 1)


def test_read_yaml__depth_has_a_bound() -> None:
    """The deepest tree that is read is DEPTH_MAX deep."""
    assert read_yaml("[" * DEPTH_MAX + "]" * DEPTH_MAX) is not None
    with pytest.raises(YamlError, match="nested deeper"):
        read_yaml("[" * (DEPTH_MAX + 2) + "]" * (DEPTH_MAX + 2))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("true", True), ("false", False), ("yes", "yes"),
        ("on", "on"), ("0", 0), ("-7", -7), ("+7", 7), ("1_000", "1_000"), ("0x10", "0x10"), ("1:30", "1:30"),
        ("0.5", 0.5), (".5", 0.5), ("1e3", 1000.0), ("1.", 1.0), (".inf", ".inf"), (".nan", ".nan"),
        ("2027-01-31", "2027-01-31"), ("9" * 21, "9" * 21),
    ],
)  # fmt: skip
def test_scalar_value__is_yaml_1_2(text: str, value: object) -> None:
    """Only what looks like a value everywhere is one; surprises of YAML 1.1 stay text."""
    found = scalar_value(text)
    assert (found, type(found)) == (value, type(value))


def test_node_of__is_what_reading_gives() -> None:
    """Plain data makes the tree that its YAML makes, on one line."""
    plain = {"a": [1, "1", None, True], "b": {"c": "x"}}
    text = "{a: [1, '1', null, true], b: {c: 'x'}}"
    assert node_of(plain) == read_yaml(text)
