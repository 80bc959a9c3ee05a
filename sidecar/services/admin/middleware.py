"""
Wraps every call: request id, concurrency limit, authentication, metrics and the log line.

An ASGI middleware around the routes: no body is read and no path is looked up before the caller is
authenticated.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import replace
from time import monotonic_ns

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidecar.observe.logs import log_event
from sidecar.observe.table import ADMIN_CALLS, ADMIN_STATUSES, OTHER
from sidecar.rpc.http import TRUST
from sidecar.services.admin.authentication import Gate
from sidecar.services.admin.call import Call, request_id_of
from sidecar.services.admin.concurrency import CallLimit
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.problems import ApiCode, own_fault, problem_error, problem_of, respond
from sidecar.stores.registry.protocol import RegistryError

CALL = "sidecar.call"
"""The key of the call in the ASGI scope."""

NO_REGISTRY = (
    "the store of the registry (Redis, or the SQLite file) is unavailable, so tokens cannot be checked;"
    " nothing was changed. See /readyz and the sidecar's log, fix the store, and retry"
)
"""The answer to callers that are not authenticated yet."""

_LOG = logging.getLogger(__name__)
_LOG_OF_REFUSALS = logging.getLogger(f"{__name__}.refusals")
"""Has its own budget, so that unauthenticated callers cannot displace log lines of changes."""
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


class AdminMiddleware:
    """Authenticates, limits, counts and logs every call."""

    def __init__(self, app: ASGIApp, context: AdminContext, calls_max: int, long_calls_max: int) -> None:
        """Wrap *app* with these limits; see `api.build_api`."""
        self._app = app
        self._gate = Gate(context)
        self._calls = CallLimit(calls_max)
        self._long_calls = CallLimit(long_calls_max)
        self._counts = _Counts(context)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call; see the ASGI specification."""
        if scope["type"] != "http":
            return  # WebSockets are refused
        call = self._begin(Request(scope, receive))
        scope[CALL] = call
        answer = _Answer(send, call.request_id)
        try:
            with call.ending:
                await self._serve(call, scope, receive, answer)
        except ClientDisconnect:
            pass  # the client has disconnected
        except Exception as error:
            await self._fail(call, error, answer)
        finally:
            self._counts.ended(call, answer.status)
            _log_change(call, answer.status)

    def _begin(self, request: Request) -> Call:
        source = request.client.host if request.client is not None and request.client.host else "local"
        request_id = request_id_of(request.headers.getlist("X-Request-Id"), source)
        call = Call(request, request_id or secrets.token_hex(16), source, self._long_calls)
        call.is_change = request.method not in _READS
        return call

    async def _serve(self, call: Call, scope: Scope, receive: Receive, answer: _Answer) -> None:
        call.caller = await self._gate.admit(call)
        # The HTTP server limits unauthenticated calls; this limit is for valid tokens alone.
        scope.get("extensions", {}).get(TRUST, _ignore)()
        call.ending.enter_context(self._calls.take())
        _require_plain_path(scope)
        await self._app(scope, receive, answer)

    async def _fail(self, call: Call, error: Exception, answer: _Answer) -> None:
        problem = problem_of(error, call.is_change)
        if isinstance(error, RegistryError):
            log_event(
                _LOG,
                logging.WARNING,
                "admin API call failed because of the registry",
                request_id=call.request_id,
                source=call.source,
                error=str(error),
            )
            if call.caller is None and problem is not None:
                problem = replace(problem, detail=NO_REGISTRY)  # do not show its address to strangers
        if problem is None:
            _LOG.error("admin API call failed, request %s", call.request_id, exc_info=error)
            problem = own_fault(call.is_change)
        if answer.status is not None:
            # Part of the answer was sent: only closing the connection shows the reader that it is incomplete.
            raise error
        call.note(code=problem.code)
        await respond(problem, call.request_id)(call.request.scope, call.request.receive, answer)


class _Answer:
    """Sends an answer with the headers of every answer, and stores its status."""

    __slots__ = ("_request_id", "_send", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._request_id
            headers["Cache-Control"] = "no-store"
            headers["X-Content-Type-Options"] = "nosniff"
        await self._send(message)


class _Counts:
    """The metrics of calls, with their slots looked up once."""

    def __init__(self, context: AdminContext) -> None:
        metrics = context.metrics
        self._values = metrics.values
        self._requests: Mapping[tuple[str, ...], int] = {
            (*call, status): metrics.slot("sidecar_admin_requests_total", *call, status)
            for call in ADMIN_CALLS
            for status in ADMIN_STATUSES
        }
        self._durations = {
            is_change: metrics.histogram("sidecar_admin_request_duration_seconds", kind)
            for is_change, kind in ((False, "read"), (True, "change"))
        }

    def ended(self, call: Call, status: int | None) -> None:
        """Count a finished call; status None = the client disconnected."""
        kind = (call.route, call.request.method)
        if kind not in ADMIN_CALLS:
            kind = (OTHER, OTHER)
        word = str(status) if str(status) in ADMIN_STATUSES else OTHER
        self._values[self._requests[(*kind, word)]] += 1
        self._durations[call.is_change].observe_ns(monotonic_ns() - call.began_ns - call.waited_ns)


def _require_plain_path(scope: Scope) -> None:
    """
    Refuse a path with escapes, so that no access rule of a proxy can be bypassed by another spelling.

    Ids need no escapes; only '@', which may occur in an administrator's id, is escaped by some clients.
    """
    raw = scope.get("raw_path") or b""
    if b"%" in raw.replace(b"%40", b"").partition(b"?")[0]:
        raise problem_error(
            ApiCode.NOT_FOUND, "paths of this API have no percent-escapes", "write the path without '%'"
        )


def _log_change(call: Call, status: int | None) -> None:
    """
    Log each authenticated change, and each other call that failed.

    A failed call is logged because its caller was given a request id to look up.
    """
    if not call.is_change or call.caller is None:
        if status is not None and status >= 400:
            log_event(
                _LOG_OF_REFUSALS,
                logging.INFO,
                "admin API call refused",
                status=status,
                source=call.source,
                request_id=call.request_id,
                **call.noted,
            )
        return
    actor = call.caller.actor
    log_event(
        _LOG,
        logging.INFO,
        "admin API change",
        status=status,
        administrator=actor.id,
        role=actor.role.value,
        token_id=actor.token_id,
        source=call.source,
        request_id=call.request_id,
        took_ms=call.took_ms,
        **call.noted,
    )


def _ignore() -> None:
    """Do nothing: the HTTP server has no trust extension."""
