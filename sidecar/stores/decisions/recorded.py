"""
How far a log was recorded, so that a reader can ask for what was recorded since.

Times of rows do not say that: a clock may be set back, and sidecars write their files at other times. The
numbers of batches do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sidecar.stores.decisions.filters import LATEST_US, Condition, timestamp
from sidecar.stores.decisions.queries import LogFile

SIDECARS_MAX = 100
"""Sidecars whose batches are remembered, those with the latest rows; of the others the time decides."""
LATE_US = 120_000_000
"""How much later than others a sidecar that is not remembered may write its rows."""
OVERLAP_US = 2_000_000
"""How much older than the rows of an earlier batch new rows may be: workers send them independently."""

_NAME = "[0-9A-Za-z._-]{1,128}"
_TEXT = re.compile(rf"\d{{1,18}}(;{_NAME}:\d{{1,10}}:\d{{1,18}}){{0,{SIDECARS_MAX}}}")


class _Batch(NamedTuple):
    """The last batch of a sidecar, and the time of the last row in its file."""

    number: int
    time_us: int


class Recorded(NamedTuple):
    """The last batch of each sidecar; rows of other sidecars are known up to `base_us`."""

    base_us: int
    batches: Mapping[str, _Batch]

    def __str__(self) -> str:
        """The text that API and command line pass."""
        batches = [f"{sidecar}:{number}:{time_us}" for sidecar, (number, time_us) in self.batches.items()]
        return ";".join([str(self.base_us), *batches])


def recorded(files: Sequence[LogFile]) -> Recorded:
    """Return how far *files*, those of the whole log, are recorded."""
    batches: dict[str, _Batch] = {}
    for file in files:
        batch = _Batch(file.segment.last, file.segment.to_us)
        if re.fullmatch(_NAME, file.sidecar):
            batches[file.sidecar] = max(batch, batches.get(file.sidecar, batch))
    latest = sorted(batches, key=lambda sidecar: batches[sidecar].time_us)[-SIDECARS_MAX:]
    base_us = max((batch.time_us for batch in batches.values()), default=0) - LATE_US
    return Recorded(max(base_us, 0), {sidecar: batches[sidecar] for sidecar in latest})


def parse_recorded(text: str) -> Recorded:
    """
    Return what *text* says.

    Raises:
        ValueError: *text* is not the text of a `Recorded`.
    """
    if not _TEXT.fullmatch(text):
        raise ValueError("not the 'recorded' of an answer")
    base, *batches = text.split(";")
    parsed = {}
    for batch in batches:
        sidecar, number, time_us = batch.split(":")
        parsed[sidecar] = _Batch(int(number), min(int(time_us), LATEST_US))
    return Recorded(min(int(base), LATEST_US), parsed)


def recorded_since(files: Sequence[LogFile], known: Recorded) -> tuple[list[LogFile], list[Condition]]:
    """
    Return the files of *files*, the whole log, with rows recorded after *known*, and conditions for the rows.

    A file that merges known batches with new ones has rows of both. There the time decides: some known rows
    are returned, and new ones are not that are older because a clock was set back.
    """
    now = recorded(files)
    chosen: list[LogFile] = []
    borders: dict[str, int] = {}
    for file in files:
        batch = known.batches.get(file.sidecar)
        if batch is not None and now.batches.get(file.sidecar, batch).number < batch.number:
            batch = None  # the folder was emptied, and the numbers began anew
        if batch is None:
            if file.segment.to_us > known.base_us:
                chosen.append(file)
                borders[file.sidecar] = known.base_us
        elif file.segment.last > batch.number:
            chosen.append(file)
            if file.segment.first <= batch.number:
                borders[file.sidecar] = batch.time_us - OVERLAP_US
    conditions = [
        Condition("sidecar <> ? OR time > ?", (sidecar, timestamp(max(border_us, 0))))
        for sidecar, border_us in borders.items()
    ]
    return chosen, conditions
