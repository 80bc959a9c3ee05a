"""
What the admin listener answers: /metrics, /healthz, /readyz, and under /v1 the admin API. Bare ASGI.

Source: the ASGI HTTP specification 2.4; the Prometheus text format and OpenMetrics, chosen by Accept.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple, TypeAlias

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from sidecar.app.readiness import Readiness
from sidecar.observe.build import VERSION
from sidecar.observe.metrics import Metrics

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
API_PATH = "/v1"


NOT_HERE = "The admin API is not served here: ask an address of 'listen.admin'."


class Response(NamedTuple):
    """One HTTP answer, whole."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class BuildCollector(Collector):
    """Which build this is, as a metric."""

    def collect(self) -> Iterator[Metric]:
        """Yield `sidecar_build_info`."""
        info = GaugeMetricFamily("sidecar_build_info", "Always 1; says which build.", labels=["version"])
        info.add_metric([VERSION], 1)
        yield info


class AdminApp:
    """
    The admin application of one process.

    `api` answers what is asked under /v1; None = nothing does, and `why_no_api` says why.
    """

    def __init__(self, metrics: Metrics, readiness: Readiness, why_no_api: str = NOT_HERE) -> None:
        """Tell *metrics* beside those of the process itself, and *readiness*."""
        self.api: AsgiApp | None = None
        self.why_no_api = why_no_api
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(metrics)
        self._registry.register(BuildCollector())
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._readiness = readiness
        self._pages: Mapping[str, Callable[[Scope], Response]] = {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; see the ASGI specification."""
        if scope["type"] != "http":
            return
        if self.api is not None and is_for_api(scope["path"]):
            await self.api(scope, receive, send)
            return
        response = self.respond(scope)
        headers = [
            (b"content-type", response.content_type.encode()),
            (b"content-length", str(len(response.body)).encode()),
            (b"cache-control", b"no-store"),
            *response.headers,
        ]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else response.body
        await send({"type": "http.response.body", "body": body})

    def respond(self, scope: Scope) -> Response:
        """The answer to the request of *scope*."""
        page = self._pages.get(scope["path"])
        if page is None and is_for_api(scope["path"]):
            return _problem(404, "No admin API", self.why_no_api)
        if page is None:
            return _problem(404, "No such page", f"Known here: {', '.join(self._pages)}.")
        if scope["method"] not in ("GET", "HEAD"):
            response = _problem(405, "Method not allowed", "Use GET or HEAD.")
            return response._replace(headers=((b"allow", b"GET, HEAD"),))
        return page(scope)

    def _metrics(self, scope: Scope) -> Response:
        accept = ",".join(
            value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"accept"
        )
        encode, content_type = choose_encoder(accept)
        return Response(200, content_type, encode(self._registry))

    def _healthz(self, scope: Scope) -> Response:
        """The process is alive: its event loop answers."""
        return Response(200, JSON, b'{"status": "alive"}\n')

    def _readyz(self, scope: Scope) -> Response:
        ready = self._readiness.is_ready
        components = {name: one._asdict() for name, one in self._readiness.components.items()}
        body = {"status": self._readiness.status, "components": components}
        return Response(200 if ready else 503, JSON, json.dumps(body, indent=2).encode() + b"\n")


def is_for_api(path: str) -> bool:
    """Whether *path* is one of the admin API's."""
    return path == API_PATH or path.startswith(f"{API_PATH}/")


def _problem(status: int, title: str, detail: str) -> Response:
    """An error as RFC 9457 wants it."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return Response(status, PROBLEM_JSON, json.dumps(body).encode() + b"\n")
