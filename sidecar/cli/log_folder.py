"""
Reads the files of a decision log themselves: `--log DIR`, on the machine that has them.

The files may be of a sidecar without an admin API, or a copy. Reading them needs no token; the mode of the
folder says who may.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from pydantic import ValidationError

from sidecar.admin_client.client import Listing
from sidecar.cli.exits import CommandError
from sidecar.cli.new_file import new_file
from sidecar.domain.refusals import RefusedError
from sidecar.services.admin.bodies import DecisionFilterQuery, DecisionListQuery
from sidecar.services.admin.decision_views import decision_view, missing_view
from sidecar.services.admin.decisions import MISSING_MAX, filters_of, recorded_of
from sidecar.services.admin.times import format_time
from sidecar.stores.decisions.export import ExportFormat, count_rows, export_rows
from sidecar.stores.decisions.queries import DecisionLogError
from sidecar.stores.decisions.reader import DecisionReader

READ_TIMEOUT_S = 60.0
EXPORT_TIMEOUT_S = 600.0

Query = Mapping[str, object]
Asked = TypeVar("Asked", bound=DecisionFilterQuery)


class LogFolder:
    """A decision log in a folder; answers as `/v1/decisions` does."""

    def __init__(self, folder: Path) -> None:
        """Read the log in *folder*; nothing is opened before a call."""
        self._reader = DecisionReader(folder)

    def listed(self, query: Query, limit: int) -> Listing:
        """
        Return the *limit* newest decisions that *query* of `/v1/decisions` admits.

        Raises:
            CommandError: a filter is invalid, or the log cannot be read.
        """
        with _reported():
            asked = _asked(DecisionListQuery, query)
            filters = filters_of(asked)
            page = self._reader.page(filters, limit, READ_TIMEOUT_S, since=recorded_of(asked))
            missing = self._reader.missing(filters.from_us, filters.to_us - 1)
        rest = {
            "recorded": str(page.recorded),
            "missing": list(map(missing_view, missing[-MISSING_MAX:])),
            "missing_spans": len(missing),
        }
        after = page.next_after
        items: list[dict[str, Any]] = [dict(decision_view(logged)) for logged in page.decisions]
        return Listing(items, None if after is None else str(after), rest)

    def decision(self, decision_id: str, query: Query) -> dict[str, Any]:
        """
        Return the decision *decision_id* in the span of time of *query*.

        Raises:
            CommandError: the decision is not in the log, or the log cannot be read.
        """
        with _reported():
            filters = replace(filters_of(_asked(DecisionFilterQuery, query)), decision_id=decision_id)
            page = self._reader.page(filters, 1, READ_TIMEOUT_S)
        if not page.decisions and page.next_after is not None:
            searched = format_time(page.next_after.time_us)
            raise CommandError(
                f"only the decisions since {searched} were searched in {READ_TIMEOUT_S:g} s; for older ones"
                f" pass --until {searched}"
            )
        if not page.decisions:
            raise CommandError(
                f"no decision {decision_id[:80]!a} in the decision log; it appears there within seconds, and"
                " the retention may have removed it"
            )
        return dict(decision_view(page.decisions[0]))

    def export(self, query: Query, format: str, file: Path) -> int:
        """
        Write the decisions that *query* admits to the new file *file*; return its size in bytes.

        Raises:
            CommandError: a filter is invalid, the log cannot be read, or the file cannot be written.
        """
        with new_file(file) as draft, TemporaryDirectory(dir=file.parent) as folder, _reported():
            filters = filters_of(_asked(DecisionFilterQuery, query))
            written = Path(folder) / "decisions"
            count_rows(self._reader, filters, EXPORT_TIMEOUT_S)
            export_rows(self._reader, filters, ExportFormat(format), written, EXPORT_TIMEOUT_S)
            with written.open("rb") as source:
                copyfileobj(source, draft)
            return written.stat().st_size


def _asked(model: type[Asked], query: Query) -> Asked:
    return model.model_validate({name: value for name, value in query.items() if value not in (None, "")})


@contextmanager
def _reported() -> Iterator[None]:
    try:
        yield
    except RefusedError as error:
        raise CommandError(str(error)) from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        message = fault["msg"].removeprefix("Value error, ")
        raise CommandError(f"{'.'.join(map(str, fault['loc']))}: {message}") from None
    except DecisionLogError as error:
        raise CommandError(str(error)) from None
