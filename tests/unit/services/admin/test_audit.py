"""The audit log by REST: pages, filters, export, verification."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sidecar.domain.audit import StoredEntry, entry_digest
from sidecar.domain.audit import verify as verify_chain
from sidecar.services.admin import audit
from sidecar.services.admin.audit import EXPORT_PAGE, entry_view
from sidecar.stores.registry.protocol import AuditQuery
from tests.administration import HOUR_US, SECOND_US
from tests.unit.services.admin.admin_api import AdminApi


def exported(api: AdminApi, query: str = "") -> list[StoredEntry]:
    """The export, read back as anyone who verifies it offline would."""
    answer = api.call("GET", f"/v1/audit/export{query}")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    return [StoredEntry(line["chain"], line["sequence"], line["digest"], line["text"]) for line in lines]


def found(api: AdminApi, query: str) -> list[Any]:
    """The entries that *query* names."""
    items: list[Any] = api.get(f"/v1/audit?{query}", "audrey")["items"]
    return items


def test_audit__filters_find_what_an_auditor_asks(api: AdminApi) -> None:
    """By subject, actor, action and time, in both orders."""
    api.create()
    api.clock.advance(us=HOUR_US)
    api.change("/v1/integrations/acme/suspend", {"reason": "key leaked"}, "olli")
    everything = found(api, "")
    assert [entry["sequence"] for entry in everything] == [1, 2, 3, 4, 5, 6]
    assert found(api, "newest_first=true") == everything[::-1]
    assert found(api, "integration=acme") == found(api, "subject=integration:acme") == everything[4:]
    assert found(api, "actor=olli") == found(api, "action=integration.suspend") == everything[5:]
    assert found(api, "since=2025-11-24T16:30:00Z") == everything[5:]
    assert found(api, "until=2025-11-24T17:30:00%2B01:00") == everything[:5]
    suspended = everything[5]
    assert (suspended["reason"], suspended["at"]) == ("key leaked", "2025-11-24T17:00:00.000000Z")
    assert suspended["before"]["status"] == "active" and suspended["after"]["status"] == "suspended"
    assert suspended["is_readable"]


def test_audit__chains_are_named(api: AdminApi) -> None:
    """A registry of one chain needs no choice, and says which it is."""
    page = api.get("/v1/audit?limit=1")
    assert (page["chain"], page["chains"], page["next_after"]) == (0, [0], "1")


def test_audit__an_export_can_be_verified_without_us(api: AdminApi) -> None:
    """Each line is what was hashed, over several pages, and the whole chain is there."""
    for number in range(EXPORT_PAGE + 20):
        api.change("/v1/integrations", {"id": f"int-{number}", "name": "x"})
    entries = exported(api)
    assert len(entries) == EXPORT_PAGE + 24
    report = verify_chain(entries)
    assert report.is_intact and report.entries_count == len(entries)
    anchor = api.get("/v1/audit/verify")["chains"][0]["anchor"]
    assert anchor == f"0:{entries[-1].sequence}:{entries[-1].digest}"
    altered = entries[7]._replace(body=entries[7].body.replace("int-", "xnt-"))
    assert [finding.first for finding in verify_chain([*entries[:7], altered, *entries[8:]]).findings] == [8]


def test_audit__an_export_can_be_cut_by_time(api: AdminApi) -> None:
    """From a moment, and before one."""
    api.clock.advance(us=HOUR_US)
    api.create()
    assert [entry.sequence for entry in exported(api, "?since=2025-11-24T16:30:00Z")] == [5]
    assert [entry.sequence for entry in exported(api, "?until=2025-11-24T16:30:00Z")] == [1, 2, 3, 4]


def test_audit__a_sound_log_is_said_to_be_so(api: AdminApi) -> None:
    """With what to note for the next time."""
    api.create()
    report = api.get("/v1/audit/verify", "audrey")
    assert (report["is_intact"], report["entries"], report["records"]) == (True, 5, 5)
    (chain,) = report["chains"]
    assert (chain["chain"], chain["entries"], report["findings"]) == (0, 5, [])
    api.change("/v1/integrations/acme/scopes/add", {"scopes": ["orders:read"]})
    assert api.get(f"/v1/audit/verify?anchor={chain['anchor']}")["is_intact"]


def test_audit__a_broken_promise_is_found(api: AdminApi) -> None:
    """An anchor that was noted, and does not fit any more, says where."""
    api.create()
    wrong = f"0:2:{'a' * 64}"
    beyond = f"0:9:{'b' * 64}"
    report = api.get(f"/v1/audit/verify?anchor={wrong}&anchor={beyond}")
    assert not report["is_intact"]
    kinds = [
        (finding["kind"], finding["sequence"], finding["last_sequence"]) for finding in report["findings"]
    ]
    assert kinds == [("altered", 2, 2), ("missing", 6, 9)]
    assert all(finding["problem"] for finding in report["findings"])


def test_audit__an_entry_that_was_altered_is_shown_as_unreadable() -> None:
    """A list does not break on it, and does not pretend to read it."""
    view = entry_view(StoredEntry(0, 3, entry_digest("{}"), "{}"))
    assert (view["is_readable"], view["sequence"], view["actor"], view["before"]) == (False, 3, None, None)


def test_audit__a_verification_has_a_deadline(api: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is too long for a call is verified offline, the answer says."""
    monkeypatch.setattr(audit, "VERIFY_TIMEOUT_S", 0.0)
    document = api.refused(504, "timeout", api.call("GET", "/v1/audit/verify"))
    assert (
        document["problems"][0]["remedy"] == "export the log and verify it with 'sidecar audit verify FILE'"
    )


def test_audit__an_export_has_a_deadline(api: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that stalls holds no place forever; the connection breaks, so that nothing looks whole."""

    async def stalled(query: AuditQuery) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(api.registry, "audit", stalled)
    monkeypatch.setattr(audit, "EXPORT_TIMEOUT_S", 0.05)
    with pytest.raises(TimeoutError):
        api.call("GET", "/v1/audit/export")


def test_audit__a_deleted_integrations_trail_stays(api: AdminApi) -> None:
    """Under its id, to its end."""
    api.create()
    api.change("/v1/integrations/acme?reason=contract+ended", method="DELETE")
    trail = found(api, "integration=acme")
    assert [entry["action"] for entry in trail] == ["integration.create", "integration.delete"]
    assert trail[1]["reason"] == "contract ended"


def test_audit__nobody_can_change_it(api: AdminApi) -> None:
    """No method but GET, for anybody."""
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("/v1/audit", "/v1/audit/export", "/v1/audit/verify"):
            api.refused(405, "method_not_allowed", api.call(method, path))


def test_audit__a_page_reads_no_more_than_it_shows(api: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export asks the registry page by page, so that memory does not grow with the log."""
    asked: list[int] = []
    real = api.registry.audit

    async def watched(query: AuditQuery) -> Any:
        asked.append(query.limit)
        return await real(query)

    monkeypatch.setattr(api.registry, "audit", watched)
    monkeypatch.setattr(audit, "EXPORT_PAGE", 3)
    assert len(exported(api)) == 4
    assert asked == [3, 3]
    api.clock.advance(us=SECOND_US)
