"""
Keeps a folder of the decision log small: merges many small files into few, and removes the oldest.

A file of level n holds about 12^n batches: with a batch every 5 s, a minute, 12 minutes, 2.4 hours and a day.
A query of a day then opens tens of files instead of 17,280. With each merged file its rollup is written,
and the index of a large one.
Rollups are merged on their own where the rows are too large for it: they are read for months.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.stores.decisions.id_index import write_index
from sidecar.stores.decisions.parquet import SORTED_BY, quoted, write_query
from sidecar.stores.decisions.rewriting import rewriting
from sidecar.stores.decisions.rollup import counted_segments, rollup_query, sum_query
from sidecar.stores.decisions.segments import Contents, Segment, parse_name, segments_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FACTOR = 12
"""Files that are merged into one of the next level."""
LEVEL_MAX = 4
"""Files of this level are not merged further: about a day of batches."""
INDEXED_BYTES_MIN = 4 << 20
"""Larger files get an index of their ids; the ids of a smaller one are read as fast."""
MERGED_BYTES_MAX = 64 << 20
"""Files that are larger together are not merged: sorting them takes ten times as much room on the disk."""
MERGE_MEMORY_LIMIT = "128MB"
"""Memory of a connection that merges: with 64 MB DuckDB cannot sort 600,000 rows, not even on the disk."""
ROLLUP_DAYS = 400
"""Rollups are kept for a year and a month."""
LOCK_TIMEOUT_S = 10.0
"""While an erasure rewrites the files for longer, the upkeep is tried again later."""
DAY_US = 86_400_000_000


def level_of(segment: Segment) -> int:
    """
    Return the level of *segment*, by its number of batches.

    >>> [level_of(Segment(Contents.ROWS, 1, last, 0, 0)) for last in (1, 11, 12, 143, 144)]
    [0, 0, 1, 1, 2]
    """
    batches, level = segment.last - segment.first + 1, 0
    while batches >= FACTOR:
        batches //= FACTOR
        level += 1
    return level


def next_merge(sizes: Mapping[Segment, int]) -> list[Segment]:
    """
    Return FACTOR neighbours of the lowest level to merge, [] = none.

    *sizes* are the current files with rows, or those with rollups, in bytes. A smaller file between them
    joins; without its neighbours it could grow no more. A file of more than 1 / FACTOR of MERGED_BYTES_MAX
    stays as it is.
    """
    rows = sorted(sizes, key=lambda segment: segment.first)
    for level in range(LEVEL_MAX):
        run: list[Segment] = []
        found = 0
        for segment in rows:
            if level_of(segment) > level or sizes[segment] * FACTOR > MERGED_BYTES_MAX:
                run, found = [], 0
                continue
            run.append(segment)
            found += level_of(segment) == level
            if found == FACTOR:
                return run
    return []


def merge(folder: Path, connection: DuckDBPyConnection) -> bool:
    """
    Merge one run of files of *folder*, with rows or with rollups; False = there is nothing to merge.

    Raises:
        OSError: the file cannot be written, or another process rewrites files; the parts stay.
    """
    with rewriting(folder, LOCK_TIMEOUT_S):
        parts = next_merge(_sizes(folder, Contents.ROWS)) or next_merge(_sizes(folder, Contents.ROLLUP))
        if not parts:
            return False
        merged = Segment(
            parts[0].contents,
            min(part.first for part in parts), max(part.last for part in parts),
            min(part.from_us for part in parts), max(part.to_us for part in parts),
        )  # fmt: skip
        source = _source(folder, parts)
        if merged.contents is Contents.ROLLUP:
            write_query(folder, merged, sum_query(source), connection)
        else:
            # The rollup first: without the merged rows it counts the same as its parts.
            _write_rollup(folder, merged, source, connection)
            query = f"SELECT * FROM {source} ORDER BY {SORTED_BY}"  # noqa: S608
            write_query(folder, merged, query, connection)
            if (folder / merged.name).stat().st_size >= INDEXED_BYTES_MIN:
                write_index(folder, merged, connection)
        _remove_replaced(folder)
    return True


def expire(folder: Path, now_us: int, keep_days: int, keep_bytes: int, connection: DuckDBPyConnection) -> int:
    """
    Remove the oldest files of *folder* and those that others replace; return the bytes that stay.

    Rows are removed after *keep_days* days, and earlier if they take more than *keep_bytes* with their
    indexes, always the oldest batches first. Rollups stay for ROLLUP_DAYS; rows that have none get one
    before they are removed.

    Raises:
        OSError: a file cannot be removed, or another process rewrites files.
    """
    with rewriting(folder, LOCK_TIMEOUT_S):
        _remove_replaced(folder)
        indexes = _sizes(folder, Contents.IDS)
        sizes = {
            segment: size + indexes.get(segment._replace(contents=Contents.IDS), 0)
            for segment, size in _sizes(folder, Contents.ROWS).items()
        }
        kept_bytes = sum(sizes.values())
        for segment in sorted(sizes, key=lambda segment: segment.first):
            if segment.to_us >= now_us - keep_days * DAY_US and kept_bytes <= keep_bytes:
                break
            if segment in counted_segments(segments_of(folder)):
                with suppress(OSError):  # a full disk needs the room of the rows more than their counts
                    _write_rollup(folder, segment, _source(folder, [segment]), connection)
            for contents in (Contents.ROWS, Contents.IDS):
                (folder / segment._replace(contents=contents).name).unlink(missing_ok=True)
            kept_bytes -= sizes[segment]
        for segment in _sizes(folder, Contents.ROLLUP):
            if segment.to_us < now_us - ROLLUP_DAYS * DAY_US:
                (folder / segment.name).unlink(missing_ok=True)
    return kept_bytes


def expire_abandoned(own: Path, now_us: int, keep_days: int, connection: DuckDBPyConnection) -> None:
    """
    Remove expired files of sidecars that write no longer, from the folders beside *own*.

    A container has a new name at each start, and nobody else would remove its rows. A folder with a younger
    row is left to its own sidecar, and so is one that this process may not change.
    """
    for folder in own.parent.iterdir():
        if folder == own or not folder.is_dir():
            continue
        with suppress(OSError):
            segments = segments_of(folder)
            if segments and max(segment.to_us for segment in segments) < now_us - keep_days * DAY_US:
                expire(folder, now_us, keep_days, sys.maxsize, connection)


def _source(folder: Path, parts: Sequence[Segment]) -> str:
    """SQL for the rows of *parts*."""
    return f"read_parquet([{', '.join(quoted(folder / part.name) for part in parts)}])"


def _write_rollup(folder: Path, rows: Segment, source: str, connection: DuckDBPyConnection) -> None:
    """Write the rollup of the file *rows*, whose rows are *source*."""
    rollup = rows._replace(contents=Contents.ROLLUP)
    write_query(folder, rollup, rollup_query(source), connection)


def _sizes(folder: Path, contents: Contents) -> dict[Segment, int]:
    """The current files of *folder* with *contents*, and their sizes in bytes."""
    found = (segment for segment in segments_of(folder) if segment.contents is contents)
    return {segment: (folder / segment.name).stat().st_size for segment in found}


def _remove_replaced(folder: Path) -> None:
    """Remove the files whose batches are in another file, and indexes without their rows."""
    segments = set(segments_of(folder))
    kept = {
        segment.name
        for segment in segments
        if segment.contents is not Contents.IDS or segment._replace(contents=Contents.ROWS) in segments
    }
    for path in list(folder.iterdir()):
        if path.name not in kept and parse_name(path.name) is not None:
            path.unlink(missing_ok=True)
