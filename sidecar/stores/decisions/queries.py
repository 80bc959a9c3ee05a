"""What queries of the decision log share: their errors, their deadline, and the relation that they read."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from sidecar.domain.decision_rows import COLUMNS
from sidecar.stores.decisions.parquet import ROW_GROUP_ROWS, quoted
from sidecar.stores.decisions.segments import Segment

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

INTERRUPT_INTERVAL_S = 0.02
"""How often a query is interrupted after its deadline, until it ends."""
NO_ROWS = f"SELECT {', '.join(f'NULL::{column.sql_type} AS {column.name}' for column in COLUMNS)} WHERE false"
"""SQL for no rows, with all columns: a log may be empty, and old files may lack a column."""


class DecisionLogError(Exception):
    """The decision log cannot be read; the message says why."""


class DecisionLogTimeoutError(DecisionLogError):
    """A query did not end before its deadline."""


class FilesChangedError(Exception):
    """A file was replaced while a query ran; the query may be repeated."""

    def __init__(self) -> None:
        """Say so."""
        super().__init__("they were replaced meanwhile")


class LogFile(NamedTuple):
    """
    A file of the log.

    `ids` is the index of its ids, None = there is none. Only its `row_groups` are read, () = all.
    """

    segment: Segment
    path: Path
    ids: Path | None = None
    row_groups: tuple[int, ...] = ()

    @property
    def sidecar(self) -> str:
        """The name of the sidecar that wrote it."""
        return self.path.parent.name


@contextmanager
def query_deadline(
    connection: DuckDBPyConnection, ends_at: float, stopped: threading.Event | None = None
) -> Iterator[None]:
    """
    Interrupt the queries of *connection* from *ends_at* on, by `monotonic`, or once *stopped* is set.

    Raises:
        DecisionLogTimeoutError: a query was interrupted.
    """
    import duckdb

    is_done = threading.Event()

    def interrupt() -> None:
        # DuckDB forgets an interrupt that it receives between two statements, therefore it is repeated.
        while not is_done.wait(INTERRUPT_INTERVAL_S):
            if monotonic() >= ends_at or (stopped is not None and stopped.is_set()):
                connection.interrupt()

    watch = threading.Thread(target=interrupt, name="decision-log-deadline", daemon=True)
    watch.start()
    try:
        yield
    except duckdb.InterruptException:
        raise DecisionLogTimeoutError("the query did not end in time; ask for a shorter span") from None
    finally:
        is_done.set()
        watch.join()


def create_view(connection: DuckDBPyConnection, files: Sequence[LogFile], more: str = "") -> None:
    """Create the relation `decisions` of *files*; *more* names virtual columns of Parquet files to add."""
    columns = f"*, split_part(filename, '/', -2) AS sidecar{more and ', '}{more}"
    whole = [str(file.path) for file in files if not file.row_groups]
    parts = [f"SELECT *, '' AS sidecar FROM ({NO_ROWS})"]  # noqa: S608
    if whole:
        paths = ", ".join(map(quoted, whole))
        parts.append(f"SELECT {columns} FROM read_parquet([{paths}], union_by_name = true)")  # noqa: S608
    parts += [
        f"SELECT {columns} FROM read_parquet({quoted(file.path)}) WHERE {_in_groups(file.row_groups)}"  # noqa: S608
        for file in files
        if file.row_groups
    ]
    connection.execute(f"CREATE OR REPLACE VIEW decisions AS {' UNION ALL BY NAME '.join(parts)}")


def _in_groups(row_groups: Sequence[int]) -> str:
    """SQL for being in one of *row_groups*; DuckDB reads only these."""
    return " OR ".join(
        f"file_row_number BETWEEN {group * ROW_GROUP_ROWS} AND {(group + 1) * ROW_GROUP_ROWS - 1}"
        for group in row_groups
    )
