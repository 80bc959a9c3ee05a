"""Masks of paths for the decision log: segments that hold personal data are recorded as `*`."""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.domain.path_faults import PathRefusedError
from sidecar.domain.paths import normalize_path

MASKED = "*"


class PathMaskError(ValueError):
    """A mask is malformed."""


class PathMasks:
    """
    Masks such as `/customers/*` or `/v1/people/*/notes/*`.

    A path that begins like a mask, segment by segment, gets `*` wherever the mask has it; the rest stays.
    Letter case does not matter. All masks apply.

    >>> PathMasks(["/customers/*"]).apply("/customers/4711/orders")
    '/customers/*/orders'
    """

    def __init__(self, masks: Sequence[str]) -> None:
        """
        Compile *masks*.

        Raises:
            PathMaskError: a mask does not begin with '/', or has no segment '*'.
        """
        self._masks = [_segments(mask) for mask in masks]

    def __bool__(self) -> bool:
        return bool(self._masks)

    def apply(self, path: str) -> str:
        """
        Return *path*, without query, with masked segments.

        If there are masks, a path that cannot be normalized is `*` as a whole: an odd spelling must not
        reveal what a mask hides.
        """
        if not self._masks:
            return path
        try:
            segments = normalize_path(path).split("/")
        except PathRefusedError:
            return MASKED
        masked = list(segments)
        for mask in self._masks:
            if len(segments) >= len(mask) and all(map(_fits, mask, segments)):
                for index, part in enumerate(mask):
                    if part == MASKED:
                        masked[index] = MASKED
        return path if masked == segments else "/".join(masked)


def _fits(part: str, segment: str) -> bool:
    return part in (MASKED, segment.casefold())


def _segments(mask: str) -> list[str]:
    segments = mask.casefold().split("/")
    if segments[0] or MASKED not in segments:
        raise PathMaskError(f"mask {mask!r} must be a path with a segment '*', such as '/customers/*'")
    return segments
