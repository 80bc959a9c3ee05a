"""The admin API as an ASGI application."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response

from sidecar.domain.refusals import RefusedError
from sidecar.services.admin import administrators, audit, changes, many, reading, review
from sidecar.services.admin.answers import answer
from sidecar.services.admin.apply import file_endpoint
from sidecar.services.admin.call import BODY_BYTES_MAX, Call
from sidecar.services.admin.endpoint import Endpoint
from sidecar.services.admin.envelope import CALL, AdminMiddleware
from sidecar.services.admin.meant import with_suggestion
from sidecar.services.admin.openapi import document
from sidecar.services.admin.places import CALLS_MAX, LONG_CALLS_MAX
from sidecar.services.admin.plane import ControlPlane
from sidecar.services.admin.problems import (
    ApiCode,
    Problem,
    ProblemError,
    problem_error,
    refused,
    respond,
)


async def show_document(plane: ControlPlane, call: Call, query: Any, body: Any) -> Response:
    """The OpenAPI document; the first time it is made in a thread, because that takes a while."""
    app: FastAPI = call.request.app
    return answer(await asyncio.to_thread(app.openapi))


ENDPOINTS: tuple[Endpoint, ...] = (
    *reading.ENDPOINTS,
    *changes.ENDPOINTS,
    *many.ENDPOINTS,
    *file_endpoint.ENDPOINTS,
    *audit.ENDPOINTS,
    *review.ENDPOINTS,
    *administrators.ENDPOINTS,
    Endpoint(
        "show_openapi", "GET", "/v1/openapi.json", "document", "Show the OpenAPI document",
        "It needs a token like everything else.", show_document,
        content=("application/json", {"type": "object"}),
    ),
)  # fmt: skip
"""Everything that the API answers."""


def build_api(
    plane: ControlPlane, calls_max: int = CALLS_MAX, long_calls_max: int = LONG_CALLS_MAX
) -> FastAPI:
    """
    The application that serves /v1 over *plane*.

    At most *calls_max* calls run at the same time, of which *long_calls_max* may take minutes.
    It has no lifespan: whoever made the registry closes it, once the server has stopped.
    """
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[Middleware(AdminMiddleware, plane, calls_max, long_calls_max)],
        exception_handlers={HTTPException: _unrouted},
    )
    for endpoint in ENDPOINTS:
        _add(app, plane, endpoint)
    made: list[dict[str, Any]] = []

    def openapi() -> dict[str, Any]:
        if not made:
            made.append(document(app, ENDPOINTS))
        return made[0]

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _add(app: FastAPI, plane: ControlPlane, endpoint: Endpoint) -> None:
    app.add_api_route(
        endpoint.path,
        _serving(plane, endpoint),
        methods=[endpoint.method],
        status_code=endpoint.status,
        response_model=None,
        response_class=Response,
        operation_id=endpoint.name,
        name=endpoint.name,
        tags=[endpoint.tag],
        summary=endpoint.summary,
        description=endpoint.description,
    )


def _serving(plane: ControlPlane, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """What FastAPI calls for *endpoint*: first who may, then whether the request can be read."""

    async def serve(request: Request) -> Response:
        call: Call = request.scope[CALL]
        call.request = request
        call.route = endpoint.tag
        endpoint.require(call.actor)
        query = call.query(endpoint.query)
        if endpoint.body is None:
            await call.no_body()
            body = None
        else:
            if endpoint.body_bytes_max > BODY_BYTES_MAX:
                call.take_long()  # so few large bodies are in memory at a time
            body = await call.body(endpoint.body, endpoint.body_bytes_max)
        try:
            return await endpoint.handle(plane, call, query, body)
        except (ProblemError, RefusedError) as error:
            problem = error.problem if isinstance(error, ProblemError) else refused(error)
            wanted = request.path_params.get("integration_id", "")
            raise ProblemError(await with_suggestion(plane.registry, problem, wanted)) from None

    return serve


async def _unrouted(request: Request, error: Exception) -> Response:
    """What no route takes: a path that does not exist, or a method that it does not know."""
    call: Call = request.scope[CALL]
    methods = methods_of(request.url.path)
    if methods:
        code = ApiCode.METHOD_NOT_ALLOWED
        allowed = ", ".join(methods)
        detail = f"this path knows {allowed}"
        return respond(Problem(code.status, code.word, detail, headers={"Allow": allowed}), call.request_id)
    problem = problem_error(ApiCode.NOT_FOUND, "there is no such path", "see /v1/openapi.json").problem
    return respond(problem, call.request_id)


def methods_of(path: str, endpoints: Sequence[Endpoint] = ENDPOINTS) -> list[str]:
    """
    The methods that *path* knows.

    >>> methods_of("/v1/integrations/acme")
    ['DELETE', 'GET', 'PATCH']
    """
    return sorted(endpoint.method for endpoint in endpoints if _matches(endpoint.path, path))


def _matches(template: str, path: str) -> bool:
    pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
    return re.fullmatch(pattern, path) is not None
