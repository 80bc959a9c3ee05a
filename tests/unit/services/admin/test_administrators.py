"""Accounts, roles and tokens by REST."""

from __future__ import annotations

import pytest

from sidecar.domain.api_keys import digest_of
from tests.administration import DAY_US
from tests.unit.services.admin.admin_api import AdminApi


def test_administrators__a_new_one_gets_a_token_that_works(api: AdminApi) -> None:
    """Shown once, for ninety days unless said otherwise."""
    answer = api.call("POST", "/v1/administrators", {"id": "cat@example", "name": "Cat", "role": "operator"})
    assert (answer.status_code, answer.headers["Location"]) == (201, "/v1/administrators/cat@example")
    view = answer.json()
    assert view["token"].startswith("sca_") and view["token"].split("_")[1] == view["token_id"]
    (token,) = view["administrator"]["tokens"]
    assert (token["id"], token["expires_at"]) == (view["token_id"], "2026-02-22T16:00:00.000000Z")
    headers = {"Authorization": f"Bearer {view['token']}"}
    whoami = api.get("/v1/whoami", "", headers=headers)
    assert (whoami["administrator"], whoami["role"]) == ("cat@example", "operator")
    shown = api.get("/v1/administrators/cat%40example")
    (token,) = shown["tokens"]
    assert (token.pop("last_used_at"), token.pop("last_used_from")) == (
        "2025-11-24T16:00:00.000000Z",
        "192.0.2.1",
    )
    assert shown == view["administrator"]
    everywhere = api.call("GET", "/v1/administrators").text + api.call("GET", "/v1/audit/export").text
    assert view["token"].rsplit("_")[-1] not in everywhere and digest_of(view["token"]) not in everywhere


def test_administrators__list_shows_removed_ones_too(api: AdminApi) -> None:
    """An id is never used again, so it is shown whose it was."""
    view = api.change("/v1/administrators/bob?reason=left", method="DELETE")
    assert (
        view["administrator"]["removed_at"].startswith("2025-11-24") and view["administrator"]["tokens"] == []
    )
    items = api.get("/v1/administrators", "audrey")["items"]
    assert [item["id"] for item in items] == ["ann", "audrey", "bob", "olli"]
    assert items[2] == view["administrator"] == api.get("/v1/administrators/bob")
    again = api.call("POST", "/v1/administrators", {"id": "bob", "name": "Bob", "role": "admin"})
    assert api.refused(409, "id_retired", again)["problems"][0]["field"] == "id"
    assert api.trail()[-1]["reason"] == "left"


def test_administrators__tokens_come_and_go(api: AdminApi) -> None:
    """A second token is the same administrator; the first can go."""
    second = api.change("/v1/administrators/bob/tokens", {"expires_in": "1h", "reason": "laptop"})
    headers = {"Authorization": f"Bearer {second['token']}"}
    assert api.get("/v1/whoami", "", headers=headers)["administrator"] == "bob"
    first = api.keys["bob"].credential_id
    view = api.change(f"/v1/administrators/bob/tokens/{first}", method="DELETE")
    assert [token["id"] for token in view["administrator"]["tokens"]] == [second["token_id"]]
    api.clock.advance(us=DAY_US)
    assert api.get("/v1/administrators/bob")["tokens"][0]["is_expired"]


def test_administrators__a_role_that_is_so_already_is_no_change(api: AdminApi) -> None:
    """And nothing is put on record."""
    before = api.revision()
    view = api.change("/v1/administrators/bob/role", {"role": "admin"})
    assert (view["is_change"], view["position"]) == (False, None)
    assert api.revision() == before


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "field"),
    [
        ("POST", "", {"id": "bob", "name": "B", "role": "admin"}, 409, "id_taken", "id"),
        ("POST", "", {"id": "Bob", "name": "B", "role": "admin"}, 422, "invalid_value", "id"),
        ("POST", "", {"id": "cat", "name": "", "role": "admin"}, 422, "invalid_value", "name"),
        ("POST", "", {"id": "cat", "name": "C", "role": "root"}, 422, "invalid_value", "role"),
        (
            "POST",
            "",
            {"id": "cat", "name": "C", "role": "admin", "token_expires_in": "367d"},
            422,
            "invalid_value",
            "expires_at",
        ),
        ("POST", "/nosuch/role", {"role": "admin"}, 404, "administrator_unknown", "id"),
        ("GET", "/nosuch", None, 404, "administrator_unknown", "id"),
        ("DELETE", "/bob/tokens/nosuch", None, 404, "token_unknown", "token_id"),
        ("POST", "/bob/tokens", {"expires_in": "0"}, 422, "invalid_value", "expires_at"),
    ],
)
def test_administrators__a_refusal_names_field_and_remedy(
    api: AdminApi, method: str, path: str, body: dict[str, object] | None, status: int, code: str, field: str
) -> None:
    """And writes nothing."""
    before = api.revision()
    document = api.refused(status, code, api.call(method, f"/v1/administrators{path}", body))
    assert document["problems"][0]["field"] == field
    assert document["problems"][0]["remedy"]
    assert api.revision() == before


def test_administrators__the_last_admin_cannot_go(api: AdminApi) -> None:
    """Nobody could ever change that again."""
    api.change("/v1/administrators/bob", method="DELETE")
    answer = api.call("DELETE", "/v1/administrators/ann")
    api.refused(409, "last_administrator", answer)
