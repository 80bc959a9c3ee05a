"""Middleware that enforces decisions in WSGI applications: Flask, Django."""

from __future__ import annotations

import http.client
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from sidecar.client.clients import Client
from sidecar.client.decisions import ClientDecision
from sidecar.client.http import KEY_HEADERS, RequestRules, judged_path

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


class WsgiMiddleware:
    """
    Asks the sidecar about each request; the application sees those that may go on.

    A denied request is answered with the status, headers and body of the decision.
    """

    def __init__(
        self,
        app: WSGIApplication,
        client: Client,
        *,
        key_headers: Collection[str] = KEY_HEADERS,
        client_ip_header: str | None = None,
    ) -> None:
        """Protect *app*; see `RequestRules` for the other arguments."""
        self._app = app
        self._client = client
        self._rules = RequestRules(key_headers, client_ip_header)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        headers = {
            name: environ[_variable(name)] for name in self._rules.read_headers if _variable(name) in environ
        }
        served = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        raw = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""  # as Gunicorn and uWSGI provide it
        decision = self._client.decide(
            environ["REQUEST_METHOD"],
            judged_path(served.encode("latin-1"), raw.encode("latin-1")) or "/",
            headers=self._rules.keys_of(headers),
            client_ip=self._rules.client_ip(headers, environ.get("REMOTE_ADDR", "")),
        )
        if not decision.is_allowed:
            return _deny(decision, environ, start_response)
        for name in self._rules.hidden_from_application(decision):
            environ.pop(_variable(name), None)
        environ.update({_variable(name): value for name, value in decision.upstream_headers.items()})

        def start_with_limits(status: str, own: list[tuple[str, str]], *error: Any) -> Any:
            kept = [(name, value) for name, value in own if name.lower() not in decision.headers]
            return start_response(status, [*kept, *decision.headers.items()], *error)

        return self._app(environ, start_with_limits)


def _variable(header: str) -> str:
    return "HTTP_" + header.upper().replace("-", "_")


def _deny(
    decision: ClientDecision, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    phrase = http.client.responses.get(decision.status, "Denied")
    headers = [*decision.headers.items(), ("content-length", str(len(decision.body)))]
    start_response(f"{decision.status} {phrase}", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [decision.body]
