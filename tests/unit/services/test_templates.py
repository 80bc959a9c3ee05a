"""Response bytes compiled by example."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from sidecar.services.templates import compile_template


def test_compile__puts_each_variable_everywhere_it_stands() -> None:
    """A variable that occurs twice is put in twice; the rest stays as it is."""

    def render(values: Mapping[str, str]) -> bytes:
        return f"<{values['id']}|{values['left']}|{values['id']}>".encode()

    template = compile_template(render, {"id": 4, "left": 2})
    assert template.fill((b"abcd", b"42")) == b"<abcd|42|abcd>"


def test_compile__percent_signs_are_no_places() -> None:
    """A '%' of the message survives the formatting."""
    template = compile_template(lambda values: f"100%% {values['id']} 5%s %".encode(), {"id": 3})
    assert template.fill((b"xyz",)) == b"100%% xyz 5%s %"


def test_compile__digits_of_the_message_are_no_places() -> None:
    """Zeros and ones that are in the message anyway are not taken for a variable."""
    template = compile_template(lambda values: f"0101{values['id']}0101".encode(), {"id": 2})
    assert template.fill((b"xy",)) == b"0101xy0101"


def test_compile__binary_messages() -> None:
    """Every byte value survives."""
    every_byte = bytes(range(256))
    template = compile_template(lambda values: every_byte + values["id"].encode() + every_byte, {"id": 5})
    assert template.fill((b"12345",)) == every_byte + b"12345" + every_byte


def test_compile__a_variable_may_be_absent_or_empty() -> None:
    """A variable the message does not hold, or of no width, has no places."""
    template = compile_template(
        lambda values: f"<{values['id']}{values['wait']}>".encode(), {"id": 1, "wait": 0, "x": 3}
    )
    assert template.fill((b"7", b"", b"123")) == b"<7>"


def test_compile__a_message_without_variables() -> None:
    """It is always the same."""
    assert compile_template(lambda values: b"100 %", {"id": 2}).fill((b"xy",)) == b"100 %"


def test_compile__refuses_a_message_whose_length_depends_on_the_value() -> None:
    """Lengths inside a message of that kind would be wrong for other values of the width."""

    def render(values: Mapping[str, str]) -> bytes:
        return values["id"].replace("1", "11").encode()

    with pytest.raises(ValueError, match="the length of the message depends on id"):
        compile_template(render, {"id": 3})


@pytest.mark.parametrize("escape", [lambda text: text.replace("1", "2"), lambda text: text[:-1] + "x"])
def test_compile__refuses_a_value_that_does_not_stand_as_it_is(escape: object) -> None:
    """An escaped or cut value cannot be put in place as it comes."""
    assert callable(escape)
    with pytest.raises(ValueError, match="does not contain id unchanged"):
        compile_template(lambda values: str(escape(values["id"])).encode(), {"id": 3})


def test_compile__renders_twice_however_many_variables() -> None:
    """What it costs to meet a new kind of answer does not grow with the number of its figures."""
    rendered: list[Mapping[str, str]] = []

    def render(values: Mapping[str, str]) -> bytes:
        rendered.append(values)
        return "".join(values.values()).encode()

    names = "abcdefghi"
    template = compile_template(render, {name: index + 1 for index, name in enumerate(names)})
    assert template.fill(tuple(name.encode() for name in names)) == names.encode()
    assert len(rendered) == 2


def test_compile__refuses_more_variables_than_digits() -> None:
    """A tenth variable would have no digit that identifies it."""
    with pytest.raises(ValueError, match="has 10 variables; at most 9"):
        compile_template(lambda values: b"", dict.fromkeys("abcdefghij", 1))


def test_compile__refuses_two_places_without_a_gap() -> None:
    """Nothing would show where one place ends and the next begins."""
    with pytest.raises(ValueError, match="does not contain id unchanged"):
        compile_template(lambda values: (values["id"] * 2).encode(), {"id": 3})
