"""The decision log by REST: filters, pages, one decision, exports and erasure."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import threading
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from sidecar.domain.changes import Revision
from sidecar.domain.decision_rows import COLUMN_NAMES, COLUMNS
from sidecar.services.admin.api import build_api
from sidecar.services.admin.decision_log import DecisionLog
from sidecar.services.admin.decision_views import DecisionView
from sidecar.services.admin.problems import ProblemError
from sidecar.stores.decisions import export
from sidecar.stores.decisions.missing import MissingSpan, add_missing
from tests.decision_log import START_US, decision_row, write_segment
from tests.unit.services.admin.admin_api import AdminApi

FIRST, SECOND, THIRD = (f"{n:022}" for n in (1, 2, 3))


@pytest.fixture
def logged(api: AdminApi) -> AdminApi:
    """An API with a decision log of two sidecars, three rows and a span with missing rows."""
    folder = api.context.require_decision_log().reader.folder
    write_segment(
        folder / "host-a",
        1,
        [
            decision_row(1, FIRST, request_id="=1+1", would_deny="ip_not_allowed", reset_at=START_US + 1),
            decision_row(
                2, SECOND, verdict="DENY_403", reason="ip_not_allowed", client_address="198.51.100.7"
            ),
        ],
    )
    write_segment(folder / "host-b", 1, [decision_row(3, THIRD, integration="bolt", path="/x")])
    add_missing(folder / "host-b", [MissingSpan(START_US, START_US + 9, 0, 4, -1, "disk")])
    return api


def listed(api: AdminApi, query: str) -> list[str]:
    """The ids that *query* finds."""
    return [item["decision_id"] for item in api.get(f"/v1/decisions?{query}", "olli")["items"]]


def test_view__has_the_columns_of_the_log() -> None:
    """A column that is added to the log is in the answers too."""
    assert tuple(DecisionView.__annotations__) == ("sidecar", *COLUMN_NAMES)


def test_decisions__off(api: AdminApi) -> None:
    """Without a decision log each endpoint names the setting."""
    api.app = build_api(replace(api.context, decision_log=None))
    for method, path in (("GET", ""), ("GET", f"/{FIRST}"), ("GET", "/export"), ("POST", "/erase")):
        answer = api.call(method, f"/v1/decisions{path}", {} if method == "POST" else None)
        assert "decision_log" in api.refused(404, "decision_log_off", answer)["problems"][0]["remedy"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [THIRD, SECOND, FIRST]),
        ("integration=acme&verdict=DENY_403", [SECOND]),
        ("address=198.51.100.0/24", [SECOND]),
        ("reason=ip_not_allowed&credential=key1", [SECOND]),
        ("request_id=%3D1%2B1", [FIRST]),
        ("path_prefix=/x&scope=orders:read&method=GET", [THIRD]),
        ("would_deny=ip_not_allowed", [FIRST]),
        ("since=2025-11-24T16:00:02Z&until=2025-11-24T16:00:03Z", [SECOND]),
    ],
)
def test_decisions__filters(logged: AdminApi, query: str, expected: list[str]) -> None:
    """Every filter of the query string reaches the log."""
    assert listed(logged, query) == expected


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("reason=rate_limitd", "reason"),
        ("would_deny=rate_limitd", "would_deny"),
        ("address=192.0.2.300", "address"),
        ("after=yesterday", "after"),
        ("verdict=MAYBE", "verdict"),
        ("since=yesterday", "since"),
        ("limit=501", "limit"),
    ],
)
def test_decisions__invalid_filters(logged: AdminApi, query: str, field: str) -> None:
    """A mistake is named with its field, and nothing is searched."""
    document = logged.refused(422, "invalid_value", logged.call("GET", f"/v1/decisions?{query}"))
    assert document["problems"][0]["field"] == field


def test_decisions__pages_say_what_is_not_in_them(logged: AdminApi) -> None:
    """A page names the sidecars in the folder, live ones that are not, and spans with missing rows."""
    revision = Revision((7,))
    for id in ("host-a:71:aa", "host-c:72:bb"):
        logged.run(logged.registry.announce(id, revision))
    page = logged.get("/v1/decisions?limit=2")
    assert [item["decision_id"] for item in page["items"]] == [THIRD, SECOND]
    assert (page["sidecars"], page["sidecars_elsewhere"]) == (["host-a", "host-b"], ["host-c:72:bb"])
    assert page["missing_spans"] == 1
    assert page["missing"] == [
        {
            "sidecar": "host-b",
            "from": "2025-11-24T16:00:00.000000Z",
            "to": "2025-11-24T16:00:00.000009Z",
            "worker": 0,
            "allowed": 4,
            "refused": None,
            "cause": "disk",
        }
    ]
    last = logged.get(f"/v1/decisions?limit=2&since=2025-11-24T16:00:01Z&after={page['next_after']}")
    assert [item["decision_id"] for item in last["items"]] == [FIRST]
    assert (last["next_after"], last["missing"]) == (None, [])


def test_decision__by_its_id(logged: AdminApi) -> None:
    """One decision with its times and its sidecar; another id is not found."""
    shown = logged.get(f"/v1/decisions/{FIRST}", "audrey")
    assert (shown["sidecar"], shown["time"]) == ("host-a", "2025-11-24T16:00:01.000000Z")
    assert (shown["reset_at"], shown["store_time"]) == ("2025-11-24T16:00:00.000001Z", None)
    for id in ("0" * 22, "no-such-id"):
        logged.refused(404, "not_found", logged.call("GET", f"/v1/decisions/{id}"))


def test_decisions__recorded_after(logged: AdminApi) -> None:
    """An answer says how far the log was recorded; asking after it finds what is new."""
    recorded = logged.get("/v1/decisions")["recorded"]
    assert listed(logged, f"recorded_after={recorded}") == []
    folder = logged.context.require_decision_log().reader.folder
    write_segment(folder / "host-b", 2, [decision_row(-9, "9" * 22)])
    assert listed(logged, f"recorded_after={recorded}") == ["9" * 22]
    problem = logged.refused(422, "invalid_value", logged.call("GET", "/v1/decisions?recorded_after=x"))
    assert problem["problems"][0]["field"] == "recorded_after"


def test_export__is_a_file_and_on_record(logged: AdminApi) -> None:
    """The three formats have the same rows, oldest first, and each export has an audit entry."""
    path = "/v1/decisions/export?integration=acme&until=2025-11-24T17:00:00Z"
    answer = logged.call("GET", path, None, "olli")
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["decision_id"] for line in lines] == [FIRST, SECOND]
    assert list(lines[0]) == ["sidecar", *COLUMN_NAMES]
    assert lines[0] == logged.get(f"/v1/decisions/{FIRST}")
    table = list(csv.DictReader(io.StringIO(logged.call("GET", f"{path}&format=csv").text)))
    assert [row["time"] for row in table] == [line["time"] for line in lines]
    assert table[0]["request_id"] == "'=1+1"  # a spreadsheet must not run it
    entries = [entry for entry in logged.trail() if entry["action"] == "decisions.export"]
    assert [(entry["actor"], entry["subject"]) for entry in entries] == [
        ("olli", "administrator:olli"),
        ("ann", "administrator:ann"),
    ]
    assert entries[0]["after"] == {
        "format": "ndjson",
        "integration": "acme",
        "rows": 2,
        "until": "2025-11-24T17:00:00.000000Z",
    }
    assert logged.get("/v1/audit/verify")["is_intact"]


def test_export__parquet_has_the_types_of_the_log(logged: AdminApi, tmp_path: Path) -> None:
    """Anyone who reads the log's files reads an export with the same query."""
    answer = logged.call("GET", "/v1/decisions/export?format=parquet")
    file = tmp_path / "export.parquet"
    file.write_bytes(answer.content)
    described = duckdb.execute(f"DESCRIBE SELECT * FROM '{file}'").fetchall()  # noqa: S608
    assert [(row[0], row[1]) for row in described] == [
        ("sidecar", "VARCHAR"),
        *((column.name, column.sql_type) for column in COLUMNS),
    ]


@pytest.mark.parametrize(
    ("accept", "query", "expected"),
    [
        ("*/*", "", "application/x-ndjson"),
        ("text/csv", "", "text/csv; charset=utf-8"),
        ("text/*;q=0.9, application/vnd.apache.parquet", "", "application/vnd.apache.parquet"),
        ("APPLICATION/*;q=0.2, text/csv;q=0.1", "", "application/x-ndjson"),
        ("image/png", "?format=csv", "text/csv; charset=utf-8"),
    ],
)
def test_export__format_by_accept(logged: AdminApi, accept: str, query: str, expected: str) -> None:
    """The header Accept chooses the format unless the query names one; the audit log has the format."""
    path = f"/v1/decisions/export{query}"
    answer = logged.call("GET", path, headers={"Accept": accept})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, expected)
    suffix = answer.headers["Content-Disposition"].rpartition(".")[2].rstrip('"')
    assert logged.trail()[-1]["after"]["format"] == suffix


def test_export__not_acceptable(logged: AdminApi) -> None:
    """An Accept without any of the formats is refused with their list, and nothing is exported."""
    for accept in ("application/json", "text/csv;q=0", "text/csv;q=x"):
        answer = logged.call("GET", "/v1/decisions/export", headers={"Accept": accept})
        problem = logged.refused(406, "not_acceptable", answer)
        for media_type in ("application/x-ndjson", "text/csv", "application/vnd.apache.parquet"):
            assert media_type in problem["detail"]
    assert all(entry["action"] != "decisions.export" for entry in logged.trail())


def test_export__is_bounded(logged: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export with too many rows is refused instead of cut, and is not on record."""
    monkeypatch.setattr(export, "EXPORT_ROWS_MAX", 2)
    answer = logged.call("GET", "/v1/decisions/export")
    assert "since" in logged.refused(422, "too_many_rows", answer)["problems"][0]["remedy"]
    assert logged.call("GET", "/v1/decisions/export?integration=acme").status_code == 200
    assert sum(entry["action"] == "decisions.export" for entry in logged.trail()) == 1


def test_erasure__is_on_record_without_the_address(logged: AdminApi) -> None:
    """A dry run counts; an erasure needs a reason, erases, and keeps only the network in the audit log."""
    body = {"address": "198.51.100.7"}
    dry = logged.change("/v1/decisions/erase?dry_run=true", body)
    assert (dry["rows"], dry["files"], dry["is_dry_run"]) == (1, 0, True)
    logged.refused(422, "reason_required", logged.call("POST", "/v1/decisions/erase", body))
    assert listed(logged, "") == [THIRD, SECOND, FIRST]
    erased = logged.change("/v1/decisions/erase", {**body, "reason": "asked by its owner"})
    assert (erased["rows"], erased["files"], erased["sidecars"]) == (1, 1, ["host-a", "host-b"])
    assert listed(logged, "") == [THIRD, FIRST]
    (entry,) = (entry for entry in logged.trail() if entry["action"] == "decisions.erase")
    assert (entry["actor"], entry["reason"]) == ("ann", "asked by its owner")
    assert entry["after"] == {"network": "198.51.100.0/24", "rows": 1}


@pytest.mark.parametrize("body", [{}, {"integration": "acme", "address": "192.0.2.1"}])
def test_erasure__names_one_thing(logged: AdminApi, body: dict[str, str]) -> None:
    """Everything is never erased by a forgotten filter."""
    logged.refused(422, "invalid_value", logged.call("POST", "/v1/decisions/erase", {**body, "reason": "x"}))


def test_log__bounds_concurrent_queries(api: AdminApi) -> None:
    """A query past the bound is refused at once; a cancelled caller's query counts until its thread ends."""
    log = api.context.require_decision_log()
    release = threading.Event()

    async def flood() -> list[object]:
        calls = [asyncio.create_task(log.run(lambda reader: release.wait(60))) for _ in range(4)]
        await asyncio.sleep(0)
        calls[0].cancel()
        await asyncio.wait(calls[:1])
        with pytest.raises(ProblemError, match="too many concurrent"):
            await log.run(lambda reader: 1)
        release.set()
        results = await asyncio.gather(*calls[1:])
        return [*results, await log.run(lambda reader: 1)]

    assert api.run(flood()) == [True, True, True, 1]


def test_log__a_folder_that_cannot_be_read(api: AdminApi, tmp_path: Path) -> None:
    """The answer names the folder, and says that the call may be repeated."""
    log = DecisionLog(tmp_path / "absent")
    api.app = build_api(replace(api.context, decision_log=log))
    answer = api.call("GET", "/v1/decisions")
    assert "absent" in api.refused(503, "decision_log_failed", answer)["detail"]
    assert answer.headers["Retry-After"]
    log.close()


def test_log__ends_its_queries_at_close(api: AdminApi) -> None:
    """The process can stop while a query runs."""
    log = api.context.require_decision_log()
    endless = "SELECT count(*) FROM range(1000000000) a, range(1000000000) b WHERE a.range + b.range = -1"

    async def stopped() -> None:
        query = log.run(lambda reader: reader.sql(endless, [], 600))
        running = asyncio.create_task(query)
        await asyncio.sleep(0)
        log.close()
        with pytest.raises(ProblemError, match="shorter span"):
            await running

    api.run(stopped())
