"""Canonical JSON: equal values have equal texts, and therefore equal digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TypeAlias, Union

Json: TypeAlias = Union[bool, int, str, "list[Json]", Mapping[str, "Json"], None]
"""The values of stored records: no fractions, because readers could round them."""


def canonical_json(value: Json) -> str:
    """
    Return *value* as JSON: keys sorted by code point, no white space, ASCII only, integers only.

    >>> canonical_json({"b": 1, "a": ["é", None]})
    '{"a":["\\\\u00e9",null],"b":1}'

    Raises:
        TypeError: a fraction, or a type that is not in `Json`.
    """
    _require_json(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_hex(text: str) -> str:
    """Return the SHA-256 of *text* in UTF-8, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _require_json(value: object) -> None:
    if value is None or isinstance(value, (bool, int, str)):
        return
    if isinstance(value, list):
        for member in value:
            _require_json(member)
        return
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for member in value.values():
            _require_json(member)
        return
    raise TypeError(f"canonical JSON has no {type(value).__name__}: use text, integers, lists and dicts")
