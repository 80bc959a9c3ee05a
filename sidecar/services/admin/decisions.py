"""The endpoints for the decision log: list, show, export, erase."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from starlette.responses import Response

from sidecar.domain.administrators import EraseDecisions, ExportDecisions
from sidecar.domain.changes import AdminRequest, ChangeContext
from sidecar.domain.cidr import Cidr, CidrError, block_of, parse_cidr
from sidecar.domain.decision_ids import DECISION_ID
from sidecar.domain.decisions import Reason
from sidecar.domain.refusals import Code, refusal
from sidecar.domain.roles import Action
from sidecar.domain.suggestions import did_you_mean
from sidecar.services.admin import bodies as b
from sidecar.services.admin.answers import answer, list_answer
from sidecar.services.admin.call import Call
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.deadline import BoundedStream
from sidecar.services.admin.decision_log import LONG_QUERY_TIMEOUT_S, QUERY_TIMEOUT_S, DecisionLog
from sidecar.services.admin.decision_views import (
    DecisionPageView,
    DecisionView,
    ErasureView,
    SidecarNamesView,
    decision_view,
    missing_view,
)
from sidecar.services.admin.endpoint import Endpoint
from sidecar.services.admin.media_types import acceptable
from sidecar.services.admin.problems import ApiCode, problem_error
from sidecar.services.admin.times import format_time
from sidecar.stores.decisions.erasure import Erased, erase
from sidecar.stores.decisions.export import ExportFormat, count_rows, export_rows
from sidecar.stores.decisions.filters import LATEST_US, DecisionFilters, joined
from sidecar.stores.decisions.missing import MissingSpan
from sidecar.stores.decisions.pages import Cursor, LoggedDecision, parse_cursor
from sidecar.stores.decisions.reader import DecisionPage, DecisionReader
from sidecar.stores.decisions.recorded import Recorded, parse_recorded

MISSING_MAX = 100
"""Spans of missing rows in one answer, the latest ones."""
CHUNK_BYTES = 1 << 16
EXPORT_TIMEOUT_S = 3_600.0
"""For sending an export to a slow reader."""

MEDIA_TYPES = {
    ExportFormat.NDJSON: "application/x-ndjson",
    ExportFormat.CSV: "text/csv; charset=utf-8",
    ExportFormat.PARQUET: "application/vnd.apache.parquet",
}


async def list_decisions(
    context: AdminContext, call: Call, query: b.DecisionListQuery, body: Any
) -> Response:
    """Answer with one page of decisions, and with what is not in it."""
    log, filters, after = context.require_decision_log(), filters_of(query), _cursor(query.after)
    since = recorded_of(query)

    def read(reader: DecisionReader) -> tuple[DecisionPage, list[MissingSpan]]:
        page = reader.page(filters, query.limit, QUERY_TIMEOUT_S, after, since)
        return page, reader.missing(filters.from_us, filters.to_us - 1)

    page, missing = await log.run(read)
    rest: dict[str, object] = {
        "next_after": str(page.next_after) if page.next_after is not None else None,
        "recorded": str(page.recorded),
        **await _sidecars(context, log),
        "missing": list(map(missing_view, missing[-MISSING_MAX:])),
        "missing_spans": len(missing),
    }
    return await list_answer(map(decision_view, page.decisions), rest)


async def show_decision(context: AdminContext, call: Call, query: b.DecisionQuery, body: Any) -> Response:
    """Answer with one decision."""
    return answer(decision_view(await found_decision(context, call, query)))


async def found_decision(context: AdminContext, call: Call, query: b.DecisionQuery) -> LoggedDecision:
    """
    Return the decision whose id is in the path of *call*.

    Raises:
        ProblemError: the log does not have the decision, or the search took too long.
    """
    log, wanted = context.require_decision_log(), call.path("decision_id")
    if not DECISION_ID.fullmatch(wanted):
        raise _unknown(wanted, "send the header X-Decision-Id of an answer")
    filters = DecisionFilters(
        from_us=query.since or 0,
        to_us=query.until if query.until is not None else LATEST_US,
        decision_id=wanted,
    )
    page = await log.run(lambda reader: reader.page(filters, 1, QUERY_TIMEOUT_S))
    if page.decisions:
        return page.decisions[0]
    if page.next_after is not None:
        searched = format_time(page.next_after.time_us)
        raise problem_error(
            ApiCode.TIMEOUT,
            f"only the decisions since {searched} could be searched in {QUERY_TIMEOUT_S:g} s",
            f"send 'until={searched}' to search older ones, or 'since' and 'until' around the decision",
        )
    raise _unknown(
        wanted, "it may be newer than the files, older than the retention, or missing: list the decisions"
    )


async def export_decisions(
    context: AdminContext, call: Call, query: b.DecisionExportQuery, body: Any
) -> Response:
    """Send decisions as a file, once the export is in the audit log."""
    log, filters, form = context.require_decision_log(), filters_of(query), _format(call, query)
    call.take_long()
    # A cancelled call leaves its thread behind, which may still write: it must not find another's folder.
    folder = TemporaryDirectory(prefix="sidecar-export-", ignore_cleanup_errors=True)
    path = Path(call.ending.enter_context(folder)) / f"decisions.{form}"

    def write(reader: DecisionReader) -> int:
        rows = count_rows(reader, filters, LONG_QUERY_TIMEOUT_S)
        export_rows(reader, filters, form, path, LONG_QUERY_TIMEOUT_S)
        return rows

    rows = await log.run(write, is_long=True)
    asked = query.model_dump(exclude_none=True) | {"format": form}
    named = {name: str(value) for name, value in asked.items()}
    times = {name: format_time(int(named[name])) for name in ("since", "until") if name in named}
    command = ExportDecisions(administrator_id=call.actor.id, filters=named | times, rows=rows)
    context_of_call = ChangeContext(call.request_id, call.source)
    await context.registry.administer(AdminRequest(command, call.actor, context_of_call))
    file = call.ending.enter_context(path.open("rb"))
    response = BoundedStream(_chunks(file), MEDIA_TYPES[form], EXPORT_TIMEOUT_S)
    response.headers["Content-Length"] = str(path.stat().st_size)
    response.headers["Content-Disposition"] = f'attachment; filename="decisions.{form}"'
    return response


def _format(call: Call, query: b.DecisionExportQuery) -> ExportFormat:
    """The format that *query* names, or else the one that the header Accept prefers."""
    if query.format is not None:
        return ExportFormat(query.format)
    offered = {media_type.partition(";")[0]: form for form, media_type in MEDIA_TYPES.items()}
    accept = ",".join(call.request.headers.getlist("Accept"))
    chosen = acceptable(accept, list(offered))
    if chosen is None:
        raise problem_error(
            ApiCode.NOT_ACCEPTABLE,
            f"Accept is {accept[:200]!a}; an export is {', '.join(offered)}",
            "send one of these media types, or 'format=' in the query string",
            "Accept",
        )
    return offered[chosen]


async def erase_decisions(
    context: AdminContext, call: Call, query: b.DecisionErasureQuery, body: b.DecisionErasure
) -> Response:
    """Erase decisions, once the erasure is in the audit log."""
    log = context.require_decision_log()
    if (body.integration is None) == (body.address is None):
        raise refusal(
            Code.INVALID_VALUE,
            "integration",
            "an erasure is of one integration or of one block of addresses",
            "send either 'integration' or 'address'",
        )
    call.take_long()
    block = _block(body.address)
    filters = DecisionFilters(integration=body.integration, addresses=block)
    erased = Erased(await log.run(partial(_count, filters), is_long=True), 0)
    if not query.dry_run:
        named = {"integration": body.integration or ""} if block is None else {"network": _network(block)}
        command = EraseDecisions(
            administrator_id=call.actor.id, filters=named, rows=erased.rows, reason=body.reason
        )
        call.note(action=command.action_name, **named)
        await context.registry.administer(AdminRequest(command, call.actor, call.change_context()))
        erased = await log.run(
            lambda reader: erase(reader.folders(), filters, LONG_QUERY_TIMEOUT_S), is_long=True
        )
    view: ErasureView = {
        "rows": erased.rows,
        "files": erased.files,
        "is_dry_run": query.dry_run,
        **await _sidecars(context, log),
    }
    return answer(view)


def filters_of(query: b.DecisionFilterQuery) -> DecisionFilters:
    """
    Return the filters that *query* asks for.

    Raises:
        RefusedError: the address or the reason is invalid.
    """
    labels = [reason.label for reason in Reason]
    for field, wanted in (("reason", query.reason), ("would_deny", query.would_deny)):
        if wanted is not None and wanted not in labels:
            raise refusal(
                Code.INVALID_VALUE,
                field,
                f"no reason {wanted[:80]!a}{did_you_mean(wanted, labels)}",
                f"send one of {', '.join(labels)}",
            )
    return DecisionFilters(
        from_us=query.since or 0,
        to_us=query.until if query.until is not None else LATEST_US,
        integration=query.integration,
        credential=query.credential,
        verdict=query.verdict,
        reason=query.reason,
        would_deny=query.would_deny,
        addresses=_block(query.address),
        scope=query.scope,
        method=query.method,
        path_prefix=query.path_prefix,
        request_id=query.request_id,
    )


async def _sidecars(context: AdminContext, log: DecisionLog) -> SidecarNamesView:
    """The sidecars whose rows are in the folder, and the live ones whose rows are elsewhere."""
    names, hosts = await log.run(
        lambda reader: ([folder.name for folder in reader.folders()], reader.hosts())
    )
    live = [sidecar.id for sidecar in await context.registry.live_sidecars()]
    return {
        "sidecars": names,
        # The id of a live sidecar begins with the name of its host.
        "sidecars_elsewhere": [id for id in live if id.partition(":")[0] not in hosts],
    }


def _count(filters: DecisionFilters, reader: DecisionReader) -> int:
    where = joined(filters.conditions())
    sql = f"SELECT count(*) FROM decisions WHERE {where.sql}"  # noqa: S608
    return int(reader.sql(sql, where.values, LONG_QUERY_TIMEOUT_S)[0][0])


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield chunk


def _cursor(text: str) -> Cursor | None:
    if not text:
        return None
    try:
        return parse_cursor(text)
    except ValueError as error:
        raise refusal(
            Code.INVALID_VALUE, "after", str(error), "send 'next_after' of the previous page"
        ) from None


def recorded_of(query: b.DecisionListQuery) -> Recorded | None:
    """
    Return since when the decisions of *query* were recorded; None = all of them.

    Raises:
        RefusedError: the text is invalid.
    """
    if not query.recorded_after:
        return None
    try:
        return parse_recorded(query.recorded_after)
    except ValueError as error:
        raise refusal(
            Code.INVALID_VALUE, "recorded_after", str(error), "send 'recorded' of an earlier answer"
        ) from None


def _block(text: str | None) -> Cidr | None:
    if text is None:
        return None
    try:
        return parse_cidr(text)
    except CidrError as error:
        raise refusal(
            Code.INVALID_VALUE, "address", str(error), "send an address or a block, such as 192.0.2.0/24"
        ) from None


def _network(block: Cidr) -> str:
    """
    The network of an erased block, for the audit log.

    The audit log is permanent, so it must not keep the address that was erased.
    """
    widest = 24 if block.width_bits == 32 else 64
    return str(block_of(block.network, min(block.length_bits, widest)))


def _unknown(decision_id: str, remedy: str) -> Exception:
    return problem_error(ApiCode.NOT_FOUND, f"no decision {decision_id[:80]!a} in the decision log", remedy)


READ = frozenset({Action.READ_DECISIONS})
_TEXT: dict[str, object] = {"type": "string"}

ENDPOINTS = (
    Endpoint(
        "list_decisions", "GET", "/v1/decisions", "decisions", "List decisions, newest first",
        "Needs the setting `decision_log`. The filters apply together. The sidecars of a fleet that write to"
        " one folder are all included.",
        list_decisions, READ, b.DecisionListQuery, answer=DecisionPageView,
    ),
    Endpoint(
        "export_decisions", "GET", "/v1/decisions/export", "decisions", "Export decisions as a file",
        "Oldest first, as NDJSON, CSV or Parquet, by `format` or the header `Accept`. The audit log records"
        " exports, because the rows have the addresses of clients.",
        export_decisions, READ, b.DecisionExportQuery,
        contents={media_type.partition(";")[0]: _TEXT for media_type in MEDIA_TYPES.values()},
    ),
    Endpoint(
        "show_decision", "GET", "/v1/decisions/{decision_id}", "decisions", "Show one decision",
        "The answer to a client has the id as `X-Decision-Id`.", show_decision, READ, b.DecisionQuery,
        answer=DecisionView,
    ),
    Endpoint(
        "erase_decisions", "POST", "/v1/decisions/erase", "decisions",
        "Erase the decisions of an integration or of addresses",
        "Needs a reason. Erases rows and counts from the files of every sidecar in the folder; rows that are"
        " not written yet stay. May be repeated.",
        erase_decisions, frozenset({Action.ERASE_DECISIONS}), b.DecisionErasureQuery, b.DecisionErasure,
        answer=ErasureView, examples=({"integration": "acme", "reason": "request of the data subject"},),
    ),
)  # fmt: skip
