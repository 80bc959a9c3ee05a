"""Reading: lists, pages, one integration, sidecars, scopes."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.domain.changes import Revision
from sidecar.domain.cidr import parse_address
from sidecar.stores.registry.protocol import CredentialUse
from tests.administration import NOW_US
from tests.unit.services.admin.admin_api import AdminApi


def pages(api: AdminApi, path: str, who: str = "ann") -> list[Any]:
    """Every member of a list, page by page, each page as small as *path* asks."""
    items: list[Any] = []
    after: str | None = ""
    for _ in range(100):
        page = api.get(f"{path}&after={after}", who)
        items += page["items"]
        after = page["next_after"]
        if after is None:
            return items
    raise AssertionError(f"{path} does not come to an end")


def test_reading__pages_lead_to_the_end(api: AdminApi) -> None:
    """Each integration once, in order, whatever the size of a page; the last page says so."""
    names = [f"int-{number:02}" for number in range(7)]
    for name in reversed(names):
        api.change("/v1/integrations", {"id": name, "name": name})
    for limit in (1, 3, 7, 500):
        assert [page["id"] for page in pages(api, f"/v1/integrations?limit={limit}")] == names
    assert [page["id"] for page in pages(api, "/v1/review?limit=2")] == names
    assert len(pages(api, "/v1/audit?limit=4")) == len(api.trail())


def test_reading__search_and_status_narrow_a_list(api: AdminApi) -> None:
    """Search looks into names and credential ids; a page of nothing is a page."""
    key = api.create()["credential_id"]
    api.change("/v1/integrations", {"id": "other", "name": "Other", "contact": "Zoë"})
    api.change("/v1/integrations/other/suspend", {"reason": "x"})

    def found(query: str) -> list[str]:
        return [item["id"] for item in api.get(f"/v1/integrations?{query}")["items"]]

    assert found(f"search={key}") == ["acme"]
    assert found("search=zo%C3%AB") == ["other"]
    assert (found("status=suspended"), found("status=active")) == (["other"], ["acme"])
    assert found("search=nothing") == []


def test_reading__one_integration_shows_where_its_keys_were_used(api: AdminApi) -> None:
    """Approximate by the interval of writing, which is enough to end an overlap."""
    key = api.create()["credential_id"]
    spare = api.change("/v1/integrations/acme/credentials/issue")["credential_id"]
    use = CredentialUse(key, "acme", parse_address("2001:db8::7"), NOW_US - 1_000_000)
    api.run(api.registry.record_uses([use]))
    shown = {credential["id"]: credential for credential in api.get("/v1/integrations/acme")["credentials"]}
    assert shown[key]["last_used_address"] == "2001:db8::7"
    assert shown[key]["last_used_at"] == "2025-11-24T15:59:59.000000Z"
    assert (shown[spare]["last_used_at"], shown[spare]["last_used_address"]) == (None, None)
    assert api.get("/v1/integrations/acme/credentials")["items"] == list(shown.values())
    assert "last_used_at" not in api.get("/v1/integrations")["items"][0]["credentials"][0]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/integrations?limit=0", "limit"),
        ("/v1/integrations?limit=501", "limit"),
        ("/v1/integrations?limit=ten", "limit"),
        ("/v1/integrations?limit=1&limit=2", "limit"),
        ("/v1/integrations?limit=%D9%A1", "limit"),
        ("/v1/integrations?limit=", "limit"),
        ("/v1/integrations?after=NOT+AN+ID", "after"),
        ("/v1/integrations?status=deleted", "status"),
        ("/v1/integrations?search=" + "x" * 257, "search"),
        ("/v1/integrations?serch=acme", "serch"),
        ("/v1/audit?after=x", "after"),
        ("/v1/audit?newest_first=yes", "newest_first"),
        ("/v1/audit?since=yesterday", "since"),
        ("/v1/audit?chain=9", "chain"),
        ("/v1/audit?integration=acme&subject=integration:acme", "integration"),
        ("/v1/audit/verify?anchor=0:1:xyz", "anchor"),
        ("/v1/review?limit=101", "limit"),
        ("/v1/whoami?" + "x" * 20_000, "query"),
    ],
)
def test_reading__a_query_that_cannot_be_meant_is_refused(api: AdminApi, path: str, field: str) -> None:
    """A misspelt parameter that is ignored would answer another question."""
    document = api.refused(422, "invalid_value", api.call("GET", path))
    assert document["problems"][0]["field"] == field
    assert document["problems"][0]["remedy"]


@pytest.mark.parametrize("path", ["/v1/integrations/nosuch", "/v1/integrations/nosuch/credentials"])
def test_reading__what_is_not_there_is_not_found(api: AdminApi, path: str) -> None:
    """With what to do instead."""
    document = api.refused(404, "integration_unknown", api.call("GET", path))
    assert document["problems"][0]["remedy"].startswith("list the integrations")


def test_reading__a_get_takes_no_body(api: AdminApi) -> None:
    """Its sender expects an effect that it would not have."""
    api.refused(422, "invalid_value", api.call("GET", "/v1/whoami", {"a": 1}))
    api.create()
    api.refused(422, "invalid_value", api.call("DELETE", "/v1/integrations/acme", {"reason": "x"}))


def test_reading__the_catalogue_says_what_can_be_permitted(api: AdminApi) -> None:
    """Fifteen categories, three of them read-only."""
    items = api.get("/v1/scopes", "olli")["items"]
    assert len(items) == 15
    assert {item["name"] for item in items if item["is_read_only"]} == {"taxonomies", "quality", "activities"}
    assert [item["scopes"] for item in items if item["name"] in ("crm", "quality")] == [
        ["quality:read"],
        ["crm:read", "crm:write"],
    ]


def test_reading__sidecars_say_who_lags_behind(api: AdminApi) -> None:
    """Up to date is who has followed all that is in the registry."""
    now = api.run(api.registry.revision())
    api.run(api.registry.announce("here", now))
    api.run(api.registry.announce("late", Revision((now.sequences[0] - 1,))))
    api.run(api.registry.announce("strange", Revision((9, 9))))
    answer = api.get("/v1/sidecars")
    assert answer["revision"] == str(now)
    assert {item["id"]: item["is_up_to_date"] for item in answer["items"]} == {
        "here": True,
        "late": False,
        "strange": False,
    }
    assert answer["items"][0]["seen_at"] == "2025-11-24T16:00:00.000000Z"


def test_reading__every_answer_has_its_headers(api: AdminApi) -> None:
    """Its id, and that nobody may keep it."""
    for path in ("/v1/whoami", "/v1/nosuch", "/v1/audit/export"):
        answer = api.call("GET", path)
        assert len(answer.headers["X-Request-Id"]) == 32
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("sent", "is_echoed"),
    [
        ("req-1", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("sck_q2R8mW0bTz_" + "x" * 36, False),
    ],
)
def test_reading__a_request_id_is_echoed_when_it_can_stand_on_record(
    api: AdminApi, sent: str, is_echoed: bool
) -> None:
    """One that cannot is replaced: the call is not refused for it."""
    answer = api.call("GET", "/v1/whoami", headers={"X-Request-Id": sent})
    assert answer.status_code == 200
    assert (answer.headers["X-Request-Id"] == sent) is is_echoed
