"""Who may call what: every endpoint for every role, and for nobody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.services.admin.api import ENDPOINTS, find
from sidecar.services.admin.endpoint import Endpoint
from sidecar.services.admin.problems import ProblemError
from tests.unit.services.admin.admin_api import AdminApi, People, opened

ALL = frozenset({"ann", "audrey", "olli"})
READERS = frozenset({"ann", "audrey"})
SUSPENDERS = frozenset({"ann", "olli"})
ADMINS = frozenset({"ann"})

MAY = {
    "whoami": ALL,
    "show_openapi": ALL,
    "list_integrations": ALL,
    "show_integration": ALL,
    "list_credentials": ALL,
    "list_scopes": ALL,
    "list_sidecars": ALL,
    "list_audit": READERS,
    "export_audit": READERS,
    "verify_audit": READERS,
    "review": READERS,
    "list_administrators": READERS,
    "show_administrator": READERS,
    "list_decisions": ALL,
    "list_refused_addresses": ALL,
    "show_decision": ALL,
    "explain_decision": ALL,
    "export_decisions": ALL,
    "erase_decisions": ADMINS,
    "show_activity": ALL,
    "integration_suspend": SUSPENDERS,
    "apply_file": ALL,  # each change in it needs its own permission, and reading needs one
    "make_changes": SUSPENDERS,  # each change in it needs its own permission
    "integration_create": ADMINS,
    "integration_edit": ADMINS,
    "integration_delete": ADMINS,
    "integration_reactivate": ADMINS,
    "scopes_add": ADMINS,
    "scopes_remove": ADMINS,
    "allowlist_add": ADMINS,
    "allowlist_remove": ADMINS,
    "allowlist_set": ADMINS,
    "allowlist_enable": ADMINS,
    "allowlist_disable": ADMINS,
    "limit_set": ADMINS,
    "limit_raise": ADMINS,
    "limit_end_raise": ADMINS,
    "store_error_set": ADMINS,
    "shadow_set": ADMINS,
    "credential_issue": ADMINS,
    "credential_rotate": ADMINS,
    "credential_revoke": ADMINS,
    "credential_set_expiry": ADMINS,
    "webhook_secret_generate": ADMINS,
    "webhook_secret_rotate": ADMINS,
    "admin_create": ADMINS,
    "admin_set_role": ADMINS,
    "admin_remove": ADMINS,
    "admin_issue_token": ADMINS,
    "admin_revoke_token": ADMINS,
}
"""One of each role that may call it: Ann is an admin, Audrey an auditor, Olli an operator."""

WHO = ("ann", "audrey", "olli", "")
CELLS = [pytest.param(route, who, id=f"{route.name}-{who or 'nobody'}") for route in ENDPOINTS for who in WHO]


@pytest.fixture(scope="module")
def shared(people: People, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminApi]:
    """One api for all cells: none of them changes anything."""
    folder: Path = tmp_path_factory.mktemp("roles")
    with opened(people, folder) as api:
        yield api


def path_of(endpoint: Endpoint) -> str:
    """A path of *endpoint*, of things that do not exist."""
    return re.sub(r"\{(\w+)\}", "nothing", endpoint.path)


@pytest.mark.parametrize(("endpoint", "who"), CELLS)
def test_roles__each_cell_of_the_matrix(shared: AdminApi, endpoint: Endpoint, who: str) -> None:
    """Nobody is admitted without a token, a role gets what it needs and no more, and nothing is written."""
    before = shared.revision()
    answer = shared.call(endpoint.method, path_of(endpoint), {} if endpoint.body else None, who)
    if not who:
        shared.refused(401, "unauthenticated", answer)
    elif who in MAY[endpoint.name]:
        assert answer.status_code in (200, 404, 422), answer.text
    else:
        document = shared.refused(403, "role_forbids", answer)
        assert "ask an administrator with the role" in document["problems"][0]["remedy"]
    # An export, of no row here, is on record; it changes nothing else.
    assert shared.revision() == before or (endpoint.name == "export_decisions" and who)
    shared.clock.advance(seconds=6)  # the next attempt without a token is within the limit again


def test_roles__the_matrix_is_whole() -> None:
    """Anyone who adds an endpoint says here who may call it; the application serves no other."""
    assert {endpoint.name for endpoint in ENDPOINTS} == set(MAY)
    for endpoint in ENDPOINTS:
        assert find(endpoint.method, path_of(endpoint))[0] is endpoint  # no path hides behind another
    with pytest.raises(ProblemError, match="no such path"):
        find("GET", "/v1/openapi-json")  # the dot of openapi.json stands for a dot alone


def test_roles__an_operator_suspends_and_nothing_else_among_many(api: AdminApi) -> None:
    """In one call of many changes, each needs its own permission."""
    api.create()
    changes = [
        {"action": "scopes.remove", "integration_id": "acme", "scopes": ["inventory:read"]},
        {"action": "integration.suspend", "integration_id": "acme", "reason": "key leaked"},
        {"action": "integration.delete", "integration_id": "acme"},
    ]
    results = api.change("/v1/changes", {"changes": changes}, "olli")["results"]
    assert [result["status"] for result in results] == [403, 200, 403]
    assert results[0]["problem"]["code"] == results[2]["problem"]["code"] == "role_forbids"


def test_roles__a_role_that_changed_counts_from_the_next_call_on(api: AdminApi) -> None:
    """A token means what its holder may do now, not what he might when he got it."""
    api.create()
    assert (
        api.call("POST", "/v1/integrations/acme/limit/set", {"rate_limit_rpm": 5}, "bob").status_code == 200
    )
    api.change("/v1/administrators/bob/role", {"role": "auditor"})
    answer = api.call("POST", "/v1/integrations/acme/limit/set", {"rate_limit_rpm": 6}, "bob")
    api.refused(403, "role_forbids", answer)
    assert api.get("/v1/whoami", "bob")["role"] == "auditor"
