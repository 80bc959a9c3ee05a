"""Builds the OpenAPI document from the same table as the routes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from sidecar.domain.administrators import ADMINISTRATOR_ID
from sidecar.domain.api_keys import CREDENTIAL_ID
from sidecar.domain.changes import CONTEXT_LENGTH_MAX
from sidecar.domain.decision_ids import DECISION_ID
from sidecar.domain.integrations import INTEGRATION_ID
from sidecar.observe.build import VERSION
from sidecar.services.admin.bodies import whole_pattern
from sidecar.services.admin.endpoint import Endpoint
from sidecar.services.admin.problems import PROBLEM_JSON, ProblemView

_REFERENCE = "#/components/schemas/{model}"
_PATH_NAME = re.compile(r"\{(\w+)\}")
_PATTERNS: Mapping[str, str] = {
    "integration_id": INTEGRATION_ID.pattern,
    "credential_id": CREDENTIAL_ID.pattern,
    "administrator_id": ADMINISTRATOR_ID.pattern,
    "token_id": CREDENTIAL_ID.pattern,
    "decision_id": DECISION_ID.pattern,
}
_MEANINGS: Mapping[int, str] = {
    400: "Invalid header",
    401: "No valid token",
    403: "Forbidden by the role, or another administrator must do it (dual control)",
    404: "Not found",
    405: "Method not allowed",
    406: "No media type of `Accept` is offered",
    408: "The body arrived too slowly",
    409: "Conflict with the current state, or the idempotency key belongs to another request",
    412: "The integration has changed since it was read; `ETag` has its current generation",
    413: "The body is too large",
    415: "The body is not JSON",
    422: "Invalid values; each is named with its remedy",
    429: "Too many failed attempts from this address",
    500: "Internal error, or the registry is damaged",
    503: "The registry is unavailable, or too many concurrent requests",
    504: "The registry did not answer in time",
}
_DESCRIPTION = """
Manages integrations and administrators. Every call needs `Authorization: Bearer sca_…`.
Times are RFC 3339 with an offset. Errors are problem documents (RFC 9457) whose `problems` name each wrong
field and its remedy. The sidecar that answers has applied a change before it answers.
""".strip()


def operation(endpoint: Endpoint) -> dict[str, Any]:
    """Return the operation object of *endpoint*: texts, parameters, body and answers."""
    made: dict[str, Any] = {
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "description": endpoint.description,
        "operationId": endpoint.name,
        "parameters": [*_path_parameters(endpoint), *_query_parameters(endpoint), *_headers(endpoint)],
        "responses": _responses(endpoint),
    }
    if endpoint.body is not None:
        media: dict[str, Any] = {"schema": {"$ref": _REFERENCE.format(model=endpoint.body.__name__)}}
        if endpoint.examples:
            media["examples"] = {
                f"example{n}": {"value": example} for n, example in enumerate(endpoint.examples, 1)
            }
        required = bool(endpoint.body.model_json_schema().get("required"))
        made["requestBody"] = {"required": required, "content": {"application/json": media}}
    return made


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The OpenAPI document of *endpoints*."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation(endpoint)
    token = {"type": "http", "scheme": "bearer", "description": "An administrator's token, `sca_…`."}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sidecar admin API",
            "summary": "Integrations of the rate-limit and auth decision service",
            "description": _DESCRIPTION,
            "version": VERSION,
        },
        "paths": paths,
        "components": {"schemas": _schemas(endpoints), "securitySchemes": {"token": token}},
        "security": [{"token": []}],
    }


def _schemas(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    bodies = list(dict.fromkeys(endpoint.body for endpoint in endpoints if endpoint.body is not None))
    answers = list(dict.fromkeys(endpoint.answer for endpoint in endpoints if endpoint.answer is not None))
    pairs: list[tuple[type[BaseModel], Any]] = [(body, "validation") for body in bodies]
    _, made = models_json_schema(pairs, ref_template=_REFERENCE)
    schemas: dict[str, Any] = dict(made.get("$defs", {}))
    for answer in (*answers, ProblemView):
        schema = TypeAdapter(answer).json_schema(ref_template=_REFERENCE, mode="serialization")
        schemas.update(schema.pop("$defs", {}))
        schemas[answer.__name__] = schema
    return dict(sorted(schemas.items()))


def _path_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": whole_pattern(_PATTERNS[name])},
        }
        for name in _PATH_NAME.findall(endpoint.path)
    ]


def _query_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    schema = endpoint.query.model_json_schema()
    parameters = []
    for name, field in schema.get("properties", {}).items():
        field.pop("title", None)
        parameter: dict[str, Any] = {"name": name, "in": "query", "required": False, "schema": field}
        if "description" in field:
            parameter["description"] = field.pop("description")
        parameters.append(parameter)
    return parameters


def _headers(endpoint: Endpoint) -> list[dict[str, Any]]:
    named: list[tuple[str, str, dict[str, Any]]] = [
        (
            "X-Request-Id",
            f"Returned and recorded if it is printable ASCII of at most {CONTEXT_LENGTH_MAX}"
            " characters; otherwise replaced by a new one.",
            {"type": "string"},
        )
    ]
    if endpoint.is_change:
        meaning = "A repeat with the same key returns the first answer, without the secret."
        key = {"type": "string", "minLength": 1, "maxLength": CONTEXT_LENGTH_MAX, "pattern": "^[ -~]+$"}
        named.append(("Idempotency-Key", meaning, key))
    if endpoint.has_generation:
        tag = {"type": "string", "pattern": '^("(0|[1-9][0-9]{0,15})"|\\*)$'}
        named.append(("If-Match", "The `ETag` of the integration that you read.", tag))
    return [
        {"name": name, "in": "header", "required": False, "description": meaning, "schema": schema}
        for name, meaning, schema in named
    ]


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    contents = endpoint.contents
    if endpoint.answer is not None:
        contents = {"application/json": {"$ref": _REFERENCE.format(model=endpoint.answer.__name__)}}
    responses[str(endpoint.status)] = {
        "description": "OK",
        "content": {media_type: {"schema": schema} for media_type, schema in contents.items()},
    }
    if endpoint.status == 201:
        responses["200"] = {**responses["201"], "description": "Dry run: nothing was changed"}
    problem = {"schema": {"$ref": _REFERENCE.format(model="ProblemView")}}
    for status in endpoint.problems:
        responses[str(status)] = {"description": _MEANINGS[status], "content": {PROBLEM_JSON: problem}}
    return responses
