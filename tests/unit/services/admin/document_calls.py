"""Calls of the admin API that schemathesis draws from the OpenAPI document. Importing it takes seconds."""

from __future__ import annotations

import json
from typing import Any

import httpx
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
from tests.unit.services.admin.admin_api import AdminApi

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 6
WITHOUT_FIELDS = {route.name for route in ENDPOINTS if route.query is Query and route.body is None}
CANNOT_BE_MISREAD = {
    route.name for route in ENDPOINTS if route.name in WITHOUT_FIELDS and "{" not in route.path
}
ONLY_A_PATH = WITHOUT_FIELDS - CANNOT_BE_MISREAD


def read_operations() -> dict[str, Any]:
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


def hold_to(api: AdminApi, name: str, operation: Any) -> None:
    """Make the calls of one operation that the document allows, then those that it does not."""
    known = {
        "integration_id": "acme",
        "credential_id": api.create()["credential_id"],
        "administrator_id": "olli",
        "token_id": api.keys["olli"].credential_id,
        "decision_id": "0" * DECISION_ID_LENGTH,
    }
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
