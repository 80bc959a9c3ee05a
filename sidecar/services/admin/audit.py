"""The endpoints for the audit log: list, export, verify."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.responses import Response
from typing_extensions import TypedDict

from sidecar.domain.audit import AuditEntry, AuditFormatError, StoredEntry, parse_anchor, parse_entry
from sidecar.domain.refusals import Code, refusal
from sidecar.domain.roles import Action
from sidecar.services.admin import bodies as b
from sidecar.services.admin.answers import answer, list_answer
from sidecar.services.admin.call import Call
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.deadline import BoundedStream, run_while_connected
from sidecar.services.admin.endpoint import Endpoint
from sidecar.services.admin.problems import ApiCode, problem_error
from sidecar.services.admin.times import format_time
from sidecar.services.admin.verification import LogView, log_view
from sidecar.stores.registry.merged_log import merged_entries, merged_page
from sidecar.stores.registry.protocol import AuditQuery
from sidecar.stores.registry.verification import RegistryReport, verify_registry

EXPORT_PAGE = 100
"""Entries in one chunk of an export; the event loop runs other calls between chunks."""
VERIFY_TIMEOUT_S = 600.0
EXPORT_TIMEOUT_S = 3_600.0
NDJSON = "application/x-ndjson"


class AuditEntryView(TypedDict):
    """
    One entry of the audit log. `is_readable` false = its body was altered, so its fields are empty.

    `before` and `after` hold the changed fields as recorded, with times in microseconds.
    """

    chain: int
    sequence: int
    digest: str
    is_readable: bool
    at: str | None
    actor: str | None
    role: str | None
    token_id: str | None
    action: str | None
    subject: str | None
    generation: int | None
    summary: str | None
    reason: str | None
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    source: str | None
    request_id: str | None


_COPIED = tuple(name for name in AuditEntryView.__annotations__ if name in AuditEntry.__annotations__)


class AuditPageView(TypedDict):
    """One page of the log; `chain` null = the entries of all `chains`, merged."""

    items: list[AuditEntryView]
    next_after: str | None
    chain: int | None
    chains: list[int]


class VerificationView(LogView):
    """The findings of a verification of the log and of `records`."""

    records: int


async def list_entries(context: AdminContext, call: Call, query: b.AuditListQuery, body: Any) -> Response:
    """Answer with one page of a chain, or of all chains merged."""
    subject = _subject(query)
    chains = await context.registry.chains(subject)
    chain = _chain(query, chains)
    wanted = AuditQuery(
        chain=chain or 0,
        subject=subject,
        actor=query.actor,
        action=query.action,
        since_us=query.since or 0,
        until_us=AuditQuery().until_us if query.until is None else query.until,
        newest_first=query.newest_first,
        after=query.after,
        limit=query.limit,
    )
    one = context.registry.audit(wanted) if chain is not None else None
    page = await (one or merged_page(context.registry, chains, wanted))
    return await list_answer(
        map(entry_view, page.entries),
        {"next_after": page.next_after or None, "chain": chain, "chains": list(chains)},
    )


async def export_entries(context: AdminContext, call: Call, query: b.ExportQuery, body: Any) -> Response:
    """Stream every entry exactly as it is stored, so that anyone can verify it without this program."""
    call.take_long()
    subject = f"integration:{query.integration}" if query.integration else ""
    chains = await context.registry.chains(subject)
    wanted = AuditQuery(
        subject=subject,
        since_us=query.since or 0,
        until_us=AuditQuery().until_us if query.until is None else query.until,
        limit=EXPORT_PAGE,
    )
    return BoundedStream(_exported(context, chains, wanted), NDJSON, EXPORT_TIMEOUT_S)


async def verify(context: AdminContext, call: Call, query: b.VerifyQuery, body: Any) -> Response:
    """Answer whether anything was altered, removed or reordered."""
    call.take_long()
    try:
        anchors = [parse_anchor(text) for text in query.anchor]
    except AuditFormatError as error:
        raise refusal(
            Code.INVALID_VALUE, "anchor", str(error), "send anchors as an earlier verification printed them"
        ) from None
    try:
        work = verify_registry(context.registry, anchors)
        report = await run_while_connected(call.request.receive, work, VERIFY_TIMEOUT_S)
    except TimeoutError:
        raise problem_error(
            ApiCode.TIMEOUT,
            f"the verification took longer than {VERIFY_TIMEOUT_S:g} s",
            "export the log and verify it with 'sidecar audit verify FILE'",
        ) from None
    return answer(verification_view(report))


def entry_view(stored: StoredEntry) -> AuditEntryView:
    """Return an entry as the API shows it."""
    try:
        entry = parse_entry(stored.body)
    except AuditFormatError:
        entry = None
    return {
        **{name: getattr(entry, name, None) for name in _COPIED},  # type: ignore[typeddict-item]
        "chain": stored.chain,
        "sequence": stored.sequence,
        "digest": stored.digest,
        "is_readable": entry is not None,
        "at": format_time(entry.at_us) if entry else None,
    }


def verification_view(report: RegistryReport) -> VerificationView:
    """Return a report as the API shows it."""
    return {**log_view(report.log, report.record_findings), "records": report.records_count}


async def _exported(
    context: AdminContext, chains: tuple[int, ...], wanted: AuditQuery
) -> AsyncIterator[bytes]:
    lines: list[bytes] = []
    async for stored in merged_entries(context.registry, chains, wanted):
        lines.append(_line(stored))
        if len(lines) == EXPORT_PAGE:
            yield b"".join(lines)
            lines.clear()
    yield b"".join(lines)


def _line(stored: StoredEntry) -> bytes:
    fields = {
        "chain": stored.chain,
        "sequence": stored.sequence,
        "digest": stored.digest,
        "text": stored.body,
    }
    return json.dumps(fields).encode() + b"\n"


def _subject(query: b.AuditListQuery) -> str:
    if query.integration and query.subject:
        raise refusal(
            Code.INVALID_VALUE,
            "integration",
            "subject and integration cannot be used together",
            "send one of them",
        )
    return f"integration:{query.integration}" if query.integration else query.subject


def _chain(query: b.AuditListQuery, chains: tuple[int, ...]) -> int | None:
    """The one chain to read; None = all of them."""
    if query.chain is None:
        return chains[0] if len(chains) == 1 else None
    if query.chain not in chains:
        raise refusal(
            Code.INVALID_VALUE,
            "chain",
            f"there is no chain {query.chain} with these entries",
            f"send chain with one of {', '.join(map(str, chains))}, or leave it out",
        )
    return query.chain


_READ = frozenset({Action.READ_AUDIT})

ENDPOINTS = (
    Endpoint(
        "list_audit", "GET", "/v1/audit", "audit", "Read the audit log",
        "Entries in the order of their times. All entries of a subject are in one chain; if the registry has"
        " several chains, they are merged unless `chain` names one.",
        list_entries, _READ, b.AuditListQuery, answer=AuditPageView,
    ),
    Endpoint(
        "export_audit", "GET", "/v1/audit/export", "audit", "Export the audit log",
        "One entry per line, exactly as it was hashed: the digest is SHA-256 over `sidecar audit 1`, a line"
        " feed and the text. An incomplete export ends without its last chunk.",
        export_entries, _READ, b.ExportQuery,
        contents={NDJSON: {"type": "string", "description": "One JSON object per line."}},
    ),
    Endpoint(
        "verify_audit", "GET", "/v1/audit/verify", "audit", "Verify the audit log",
        "Checks every chain, and every record against its latest entry; with anchors, also that the end of no"
        " chain was cut off.",
        verify, _READ, b.VerifyQuery, answer=VerificationView,
    ),
)  # fmt: skip
