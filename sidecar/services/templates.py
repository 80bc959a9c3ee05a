"""
Response bytes compiled by example, so that a decision costs one formatting call.

A template is rendered by the real renderer (protobuf, JSON) twice, with same-width fill values that are
all zeros, then a digit of its own for each variable; the bytes that change are the variables' places, and
by how much tells whose. Lengths inside the message stay right because a value is only put in where its
width is the template's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

VARIABLES_MAX = 9
_CHANGED = re.compile(rb"([^\x00])\1*", re.DOTALL)

Template = bytes
"""A bytes format with `%(name)b` places."""


def compile_template(render: Callable[[Mapping[str, str]], bytes], widths: Mapping[str, int]) -> Template:
    """
    Compile what *render* makes of variables with these *widths* (characters, all ASCII).

    Raises:
        ValueError: *render* changes a variable's width (escapes it, say), so it cannot be compiled; or
            there are more than nine variables.
    """
    names = [name for name, width in widths.items() if width]
    if len(names) > VARIABLES_MAX:
        raise ValueError(f"at most {VARIABLES_MAX} variables can be told apart, not {len(names)}")
    base = render({name: "0" * width for name, width in widths.items()})
    fills = {name: str(number) * widths[name] for number, name in enumerate(names, 1)}
    other = render({**dict.fromkeys(widths, ""), **fills})
    template = bytearray()
    end = 0
    for start, stop, name in _places(base, other, names, widths):
        template += base[end:start].replace(b"%", b"%%") + b"%(" + name.encode() + b")b"
        end = stop
    return bytes(template + base[end:].replace(b"%", b"%%"))


def _places(
    base: bytes, other: bytes, names: list[str], widths: Mapping[str, int]
) -> list[tuple[int, int, str]]:
    """Where *other* differs from *base*, and which variable stands there."""
    if len(base) != len(other):
        raise ValueError(f"the length of the message depends on {', '.join(names)}")
    changed = (int.from_bytes(base) ^ int.from_bytes(other)).to_bytes(len(base))
    places = []
    for place in _CHANGED.finditer(changed):
        number = place[0][0]  # '0' ^ '3' = 3
        name = names[number - 1] if number <= len(names) else None
        if name is None or len(place[0]) != widths[name]:
            raise ValueError(f"{name or ', '.join(names)} does not stand as it is in the message")
        places.append((*place.span(), name))
    return places
