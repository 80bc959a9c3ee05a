"""
Response bytes compiled by example, so that a decision costs one formatting call.

A template is rendered by the real renderer (protobuf, JSON) several times with same-width fill
values; the bytes that change when one variable changes are that variable's places. Lengths inside
the message stay right because a value is only put in where its width is the template's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_CHANGED = re.compile(rb"[^\x00]+")

Template = bytes
"""A bytes format with `%(name)b` places."""


def compile_template(render: Callable[[Mapping[str, str]], bytes], widths: Mapping[str, int]) -> Template:
    """
    Compile what *render* makes of variables with these *widths* (characters, all ASCII).

    Raises:
        ValueError: *render* changes a variable's width (escapes it, say), so it cannot be compiled.
    """
    fill = {name: "0" * width for name, width in widths.items()}
    base = render(fill)
    places: list[tuple[int, int, str]] = []
    for name, width in widths.items():
        other = render({**fill, name: "1" * width})
        places += _places(base, other, name, width)
    template = bytearray()
    end = 0
    for start, stop, name in sorted(places):
        template += base[end:start].replace(b"%", b"%%") + b"%(" + name.encode() + b")b"
        end = stop
    return bytes(template + base[end:].replace(b"%", b"%%"))


def _places(base: bytes, other: bytes, name: str, width: int) -> list[tuple[int, int, str]]:
    if len(base) != len(other):
        raise ValueError(f"the length of the message depends on {name}")
    changed = (int.from_bytes(base) ^ int.from_bytes(other)).to_bytes(len(base))
    places = list(_CHANGED.finditer(changed))
    if any(place[0] != b"\x01" * width for place in places):  # '0' ^ '1' = 1
        raise ValueError(f"{name} does not stand as it is in the message")
    return [(*place.span(), name) for place in places]
