"""The OpenAPI document, and the API held to it by schemathesis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, CheckContext, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from sidecar.domain.decision_ids import DECISION_ID_LENGTH
from sidecar.services.admin.api import ENDPOINTS, api_document
from sidecar.services.admin.bodies import Query
from sidecar.services.admin.endpoint import Endpoint
from tests.unit.services.admin.admin_api import AdminApi

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 6
CANNOT_BE_MISREAD = {"whoami", "list_scopes", "list_sidecars", "list_administrators", "show_openapi"}
ONLY_A_PATH = {"show_integration", "list_credentials", "show_administrator"}
NAMES = [route.name for route in ENDPOINTS]


def references(value: Any) -> Iterator[str]:
    """Every reference in a part of the document."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def operation_of(document: dict[str, Any], endpoint: Endpoint) -> Any:
    """What the document says of *endpoint*."""
    return document["paths"][endpoint.path][endpoint.method.lower()]


def test_openapi__describes_every_endpoint(api: AdminApi) -> None:
    """With a summary, what it answers, how it fails, and what it takes."""
    document = api.get("/v1/openapi.json", "audrey")
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert described == {(route.method, route.path) for route in ENDPOINTS}
    assert document["security"] == [{"token": []}]
    for route in ENDPOINTS:
        operation = operation_of(document, route)
        assert operation["operationId"] == route.name and operation["summary"] and operation["description"]
        assert {str(status) for status in route.problems} < set(operation["responses"])
        contents = operation["responses"][str(route.status)]["content"]
        assert all(media["schema"] for media in contents.values())
        assert set(contents) == {"application/json"} or route.name.startswith("export_")
        assert ("requestBody" in operation) is (route.body is not None)
        names = {parameter["name"] for parameter in operation["parameters"]}
        assert ("Idempotency-Key" in names) is route.is_change
        assert ("If-Match" in names) is route.has_generation


def test_openapi__stands_alone(api: AdminApi) -> None:
    """Every reference leads to a part of it, and no other host is needed to read it."""
    document = api.get("/v1/openapi.json")
    for reference in references(document):
        part: Any = document
        for step in reference.removeprefix("#/").split("/"):
            part = part[step]
        assert part
    assert "://" not in json.dumps(document)


def test_openapi__examples_are_right(api: AdminApi) -> None:
    """Each example of a body is one that its endpoint reads."""
    shown = [(route, example) for route in ENDPOINTS for example in route.examples]
    assert len(shown) > 15
    document = api.get("/v1/openapi.json")
    for route, example in shown:
        assert route.body is not None
        route.body.model_validate(example)
        media = operation_of(document, route)["requestBody"]["content"]["application/json"]
        assert example in [given["value"] for given in media["examples"].values()]


def test_openapi__a_body_is_required_where_a_field_is(api: AdminApi) -> None:
    """Where all may be left out, so may the body."""
    document = api.get("/v1/openapi.json")
    required = {
        route.name
        for route in ENDPOINTS
        if route.body and operation_of(document, route)["requestBody"]["required"]
    }
    assert {"integration_create", "limit_set", "integration_suspend", "make_changes"} <= required
    assert required.isdisjoint({"credential_issue", "allowlist_enable", "admin_issue_token"})


@pytest.fixture(scope="module")
def operations() -> dict[str, Any]:
    """The operations of the document, as schemathesis reads them, by their names."""
    document = json.loads(json.dumps(api_document()))
    del document["security"]  # the token is the test's to send: test_authentication is about others
    loaded = (result.ok() for result in schemathesis.openapi.from_dict(document).get_all_operations())
    return {operation.definition.raw["operationId"]: operation for operation in loaded}


async def call(api: AdminApi, case: Case) -> httpx.Response:
    """Send *case* as it was generated."""
    given_ = case.as_transport_kwargs(base_url="http://admin.example")
    given_["headers"] = {**(given_.get("headers") or {}), "Authorization": f"Bearer {api.token('ann')}"}
    given_.pop("cookies", None)
    if "data" in given_:
        given_["content"] = given_.pop("data")
    transport = httpx.ASGITransport(api.app)
    async with httpx.AsyncClient(transport=transport) as client:
        return await client.request(**given_)


def refuses_what_it_does_not_allow(context: CheckContext, answer: Response, case: Case) -> bool | None:
    """As schemathesis has it; but a guard may refuse first, and of many changes each has its own status."""
    if answer.status_code == 412:
        return None
    if case.path == "/v1/changes" and answer.status_code == 200:
        assert any(result["status"] >= 400 for result in answer.json()["results"])
        return None
    return negative_data_rejection(context, answer, case)


def hold(api: AdminApi, drawn: st.SearchStrategy[Case], checks: list[Any]) -> None:
    """Make calls that are *drawn*, always the same ones, and check each answer."""

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=drawn)
    def once(case: Case) -> None:
        case.validate_response(api.run(call(api, case)), checks=checks)

    once()


@pytest.mark.parametrize("name", NAMES)
def test_openapi__the_api_keeps_to_it(api: AdminApi, operations: dict[str, Any], name: str) -> None:
    """
    Whatever the document allows, and whatever it does not: no fault of ours, and every answer as described.

    What it does not allow is refused. Half of the calls name things that exist.
    """
    known = {
        "integration_id": "acme",
        "credential_id": api.create()["credential_id"],
        "administrator_id": "olli",
        "token_id": api.keys["olli"].credential_id,
        "decision_id": "0" * DECISION_ID_LENGTH,
    }
    operation = operations[name]
    chosen = {
        path_parameter.name: known[path_parameter.name] for path_parameter in operation.path_parameters or ()
    }
    allowed = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if chosen:
        positive = GenerationMode.POSITIVE
        allowed |= operation.as_strategy(generation_mode=positive, path_parameters=chosen)
    hold(api, allowed, CHECKS)
    if name not in CANNOT_BE_MISREAD:
        forbidden = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
        if chosen and name not in ONLY_A_PATH:
            negative = GenerationMode.NEGATIVE
            forbidden |= operation.as_strategy(generation_mode=negative, path_parameters=chosen)
        hold(api, forbidden, [*CHECKS, refuses_what_it_does_not_allow])


def test_openapi__the_lists_above_are_right() -> None:
    """Without parameters there is nothing to misread; with a path alone, nothing but the path."""
    plain = {route.name for route in ENDPOINTS if route.query is Query and route.body is None}
    assert plain == CANNOT_BE_MISREAD | ONLY_A_PATH
    assert {
        route.name for route in ENDPOINTS if route.name in plain and "{" not in route.path
    } == CANNOT_BE_MISREAD
