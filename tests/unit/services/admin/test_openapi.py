"""The OpenAPI document, and the API held to it by schemathesis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.services.admin.api import ENDPOINTS
from sidecar.services.admin.endpoint import Endpoint
from tests.unit.services.admin.admin_api import AdminApi, People, opened


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


def test_openapi__the_api_keeps_to_it(people: People, tmp_path: Path, subtests: pytest.Subtests) -> None:
    """
    Whatever the document allows, and whatever it does not: no fault of ours, and every answer as described.

    What it does not allow is refused. Half of the calls name things that exist. One test for all operations,
    so that one process of a run imports schemathesis.
    """
    from tests.unit.services.admin.document_calls import hold_to, read_operations

    operations = read_operations()
    assert set(operations) == {route.name for route in ENDPOINTS}
    for name, operation in operations.items():
        folder = tmp_path / name
        folder.mkdir()
        with subtests.test(name), opened(people, folder) as api:
            hold_to(api, name, operation)
