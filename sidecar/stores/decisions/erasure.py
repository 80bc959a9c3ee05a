"""
Erases rows of the decision log, of all sidecars of a folder, from rows and rollups.

A file is replaced by one without the rows, under the same name, so that a reader sees one or the other. Rows
that a writer has received but not written yet are not erased.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from sidecar.domain.cidr import Cidr, CidrError, parse_cidr
from sidecar.stores.decisions.filters import Condition, DecisionFilters, Value, joined
from sidecar.stores.decisions.id_index import write_index
from sidecar.stores.decisions.parquet import connect, quoted, write_query
from sidecar.stores.decisions.queries import DecisionLogError, query_deadline
from sidecar.stores.decisions.rewriting import rewriting
from sidecar.stores.decisions.rollup import rollup_query
from sidecar.stores.decisions.segments import Contents, Segment, current, parse_name

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


class Erased(NamedTuple):
    """What an erasure removed: the number of rows, and of the files that had them."""

    rows: int
    files: int


def erase(folders: list[Path], filters: DecisionFilters, deadline_s: float) -> Erased:
    """
    Erase the rows of one integration or of a block of addresses from the sidecars' *folders*.

    A rollup whose rows still exist is computed again from the rows that are left. An older rollup loses the
    integration, or the networks that have an address of the block.

    Raises:
        ValueError: *filters* names something else than an integration or addresses.
        DecisionLogError: a file cannot be replaced, or *deadline_s* has passed; some files may be done. An
            erasure may be repeated.
    """
    only = DecisionFilters(integration=filters.integration, addresses=filters.addresses)
    if filters != only or (filters.integration is None) == (filters.addresses is None):
        raise ValueError("an erasure is of one integration or of one block of addresses")
    import duckdb

    ends_at = monotonic() + deadline_s
    erased = Erased(0, 0)
    for folder in folders:
        try:
            with (
                rewriting(folder, ends_at - monotonic()),
                connect(folder) as connection,
                query_deadline(connection, ends_at),
            ):
                done = _Erasure(connection, folder, filters).run()
        except (OSError, duckdb.Error) as error:
            raise DecisionLogError(f"the rows could not be erased: {error}; repeat the erasure") from None
        erased = Erased(erased.rows + done.rows, erased.files + done.files)
    return erased


class _Erasure:
    """The erasure in one sidecar's folder, by the process that may rewrite its files."""

    def __init__(self, connection: DuckDBPyConnection, folder: Path, filters: DecisionFilters) -> None:
        self._connection = connection
        self._folder = folder
        self._filters = filters

    def run(self) -> Erased:
        found = [segment for path in self._folder.iterdir() if (segment := parse_name(path.name)) is not None]
        kept = list(current(found))
        for segment in found:
            if segment not in kept:  # compaction has replaced it, and was killed before it removed it
                (self._folder / segment.name).unlink(missing_ok=True)
        of = {
            contents: [segment for segment in kept if segment.contents is contents] for contents in Contents
        }
        counts = {segment: self._erase_rows(segment) for segment in of[Contents.ROWS]}
        for segment in of[Contents.IDS]:
            rows = segment._replace(contents=Contents.ROWS)
            if counts.get(rows):
                write_index(self._folder, rows, self._connection)
        for segment in of[Contents.ROLLUP]:
            rows = segment._replace(contents=Contents.ROWS)
            if rows not in counts:
                self._erase_counts(segment)
            elif counts[rows]:
                self._write(segment, rollup_query(self._source(rows)))
        return Erased(sum(counts.values()), sum(count > 0 for count in counts.values()))

    def _erase_rows(self, segment: Segment) -> int:
        return self._erase_where(segment, joined(self._filters.conditions()))

    def _erase_counts(self, segment: Segment) -> int:
        """Erase from a rollup whose rows were erased."""
        block = self._filters.addresses
        if block is None:
            return self._erase_where(segment, joined(self._filters.conditions()))
        sql = f"SELECT DISTINCT key FROM {self._source(segment)} WHERE kind = 'address'"  # noqa: S608
        networks = [key for (key,) in self._connection.execute(sql).fetchall() if _overlaps(key, block)]
        if not networks:
            return 0
        return self._erase_where(
            segment, Condition("kind = 'address' AND list_contains(?, key)", (networks,))
        )

    def _erase_where(self, segment: Segment, where: Condition) -> int:
        count = self._count(segment, where)
        if count:
            source = self._source(segment)
            self._write(segment, f"SELECT * FROM {source} WHERE NOT ({where.sql})", where.values)  # noqa: S608
        return count

    def _count(self, segment: Segment, where: Condition) -> int:
        sql = f"SELECT count(*) FROM {self._source(segment)} WHERE {where.sql}"  # noqa: S608
        row = self._connection.execute(sql, where.values).fetchone()
        assert row is not None  # an aggregate has one row
        return int(row[0])

    def _source(self, segment: Segment) -> str:
        return f"read_parquet({quoted(self._folder / segment.name)})"

    def _write(self, segment: Segment, query: str, values: Sequence[Value] = ()) -> None:
        write_query(self._folder, segment, query, self._connection, values)


def _overlaps(network: str, block: Cidr) -> bool:
    """Whether *network*, the key of a rollup, has an address of *block*; `rollup.OTHER` has none."""
    try:
        other = parse_cidr(network)
    except CidrError:
        return False
    return other.covers(block) or block.covers(other)
