"""The admin API as an ASGI application."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sidecar.domain.refusals import RefusedError
from sidecar.services.admin import (
    activity,
    administrators,
    audit,
    changes,
    decisions,
    explanations,
    many,
    reading,
    refused_addresses,
    review,
)
from sidecar.services.admin.answers import answer
from sidecar.services.admin.apply import file_endpoint
from sidecar.services.admin.call import BODY_BYTES_MAX, Call
from sidecar.services.admin.concurrency import CALLS_MAX, LONG_CALLS_MAX
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.endpoint import Endpoint
from sidecar.services.admin.middleware import CALL, AdminMiddleware
from sidecar.services.admin.openapi import document
from sidecar.services.admin.problems import ApiCode, Problem, ProblemError, problem_error, refused
from sidecar.services.admin.suggestion import with_suggestion


async def show_document(context: AdminContext, call: Call, query: Any, body: Any) -> Response:
    """Answer with the OpenAPI document; the first call builds it for some 0.2 s, in a thread."""
    return answer(await asyncio.to_thread(api_document))


@cache
def api_document() -> dict[str, Any]:
    """The OpenAPI document of `ENDPOINTS`, made once."""
    return document(ENDPOINTS)


ENDPOINTS: tuple[Endpoint, ...] = (
    *reading.ENDPOINTS,
    *changes.ENDPOINTS,
    *many.ENDPOINTS,
    *file_endpoint.ENDPOINTS,
    *audit.ENDPOINTS,
    *review.ENDPOINTS,
    *decisions.ENDPOINTS,
    *refused_addresses.ENDPOINTS,
    *activity.ENDPOINTS,
    *explanations.ENDPOINTS,
    *administrators.ENDPOINTS,
    Endpoint(
        "show_openapi", "GET", "/v1/openapi.json", "document", "Show the OpenAPI document",
        "Needs a valid token.", show_document,
        contents={"application/json": {"type": "object"}},
    ),
)  # fmt: skip
"""All endpoints of the API."""


_PATHS: Mapping[str, re.Pattern[str]] = {
    endpoint.path: re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(endpoint.path)))
    for endpoint in ENDPOINTS
}


def build_api(
    context: AdminContext, calls_max: int = CALLS_MAX, long_calls_max: int = LONG_CALLS_MAX
) -> AdminMiddleware:
    """
    Build the application that serves /v1 with *context*.

    At most *calls_max* calls run at the same time, of which *long_calls_max* may take minutes.
    The application does not close the registry: its owner does, after the server has stopped.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        endpoint, scope["path_params"] = find(scope["method"], scope["path"])
        response = await _answer(context, endpoint, scope[CALL])
        await response(scope, receive, send)

    return AdminMiddleware(serve, context, calls_max, long_calls_max)


def find(method: str, path: str) -> tuple[Endpoint, dict[str, str]]:
    """
    The endpoint of *method* and *path*, with the variable parts of the path.

    >>> endpoint, parts = find("GET", "/v1/integrations/acme")
    >>> endpoint.name, parts
    ('show_integration', {'integration_id': 'acme'})

    Raises:
        ProblemError: no endpoint has this path, or none of this path has this method.
    """
    allowed = []
    for endpoint in ENDPOINTS:
        match = _PATHS[endpoint.path].fullmatch(path)
        if match and endpoint.method == method:
            return endpoint, match.groupdict()
        if match:
            allowed.append(endpoint.method)
    if not allowed:
        raise problem_error(ApiCode.NOT_FOUND, "no such path", "see /v1/openapi.json")
    methods = ", ".join(sorted(allowed))
    code = ApiCode.METHOD_NOT_ALLOWED
    detail = f"this path allows {methods}"
    raise ProblemError(Problem(code.status, code.text, detail, headers={"Allow": methods}))


async def _answer(context: AdminContext, endpoint: Endpoint, call: Call) -> Response:
    """Answer a call of *endpoint*: check the permission, then the request, then handle it."""
    call.route = endpoint.tag
    endpoint.require(call.actor)
    query = call.query(endpoint.query)
    if endpoint.body is None:
        await call.no_body()
        body = None
    else:
        if endpoint.body_bytes_max > BODY_BYTES_MAX:
            call.take_long()  # bounds the large bodies that are in memory at the same time
        body = await call.body(endpoint.body, endpoint.body_bytes_max)
    try:
        return await endpoint.handle(context, call, query, body)
    except (ProblemError, RefusedError) as error:
        problem = error.problem if isinstance(error, ProblemError) else refused(error)
        wanted = call.request.path_params.get("integration_id", "")
        raise ProblemError(await with_suggestion(context.registry, problem, wanted)) from None
