"""Chooses the media type of an answer by the request's header `Accept` (RFC 9110 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

RANGES_MAX = 64
"""Media ranges of a header that are compared; the rest is ignored."""


def acceptable(accept: str, offered: Sequence[str]) -> str | None:
    """
    Return which of *offered* the header *accept* prefers; None = it admits none of them.

    The first of *offered* wins among equals. Parameters other than the weight `q` are ignored.

    >>> acceptable("text/csv;q=0.5, application/*", ["application/json", "text/csv"])
    'application/json'
    >>> acceptable("image/png, */*;q=0", ["application/json", "text/csv"]) is None
    True
    """
    ranges = dict(_weighted(text) for text in accept.split(",")[:RANGES_MAX] if text.strip())
    weights = {media_type: _weight(media_type, ranges) for media_type in offered}
    best = max(offered, key=weights.__getitem__)
    return best if weights[best] > 0 else None


def _weight(media_type: str, ranges: dict[str, float]) -> float:
    """The weight of the most specific range that has *media_type*."""
    if not ranges:  # without the header every type is acceptable
        return 1.0
    kind = media_type.partition("/")[0]
    matching = (media_type, f"{kind}/*", "*/*")
    return next((ranges[name] for name in matching if name in ranges), 0.0)


def _weighted(text: str) -> tuple[str, float]:
    """The media range *text* without parameters, and its weight; an invalid weight is 0."""
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    weights = [value.removeprefix("q=") for value in parameters if value.startswith("q=")]
    try:
        weight = float(weights[0]) if weights else 1.0
    except ValueError:
        weight = 0.0
    return name, weight if 0.0 <= weight <= 1.0 else 0.0
