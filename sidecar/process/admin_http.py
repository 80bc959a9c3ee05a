"""The HTTP pages of `listen.admin` and `listen.metrics`: /metrics, /healthz, /readyz, and the admin API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from sidecar.observe.build import BUILD, VERSION
from sidecar.observe.metrics import Metrics
from sidecar.process.metrics_page import MetricsPage
from sidecar.process.readiness import Readiness
from sidecar.transports.http1.asgi import AsgiApp, serve_asgi
from sidecar.transports.http1.exchange import Exchange
from sidecar.transports.http1.messages import JSON, Response, problem
from sidecar.transports.http1.work import Pace

API_PATH = b"/v1"

NOT_HERE = "This listener does not serve the admin API: use an address of 'listen.admin'."


class BuildCollector(Collector):
    """Collects version and build as the metric `sidecar_build_info`."""

    def collect(self) -> Iterator[Metric]:
        """Yield `sidecar_build_info`."""
        info = GaugeMetricFamily(
            "sidecar_build_info", "Always 1, with the version and the build.", labels=["version", "build"]
        )
        info.add_metric([VERSION, BUILD], 1)
        yield info


class AdminApp:
    """
    The HTTP application of one process.

    `api` answers requests under /v1; None = they get a 404 whose text is `why_no_api`.
    """

    def __init__(
        self, metrics: Metrics, readiness: Readiness, pace: Pace, why_no_api: str = NOT_HERE
    ) -> None:
        """Serve *readiness* and *metrics*, with those of the Python process, rendered at *pace*."""
        self.api: AsgiApp | None = None
        self.why_no_api = why_no_api
        registry = CollectorRegistry(auto_describe=False)
        registry.register(metrics)
        registry.register(BuildCollector())
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._metrics_page = MetricsPage(registry, pace)
        self._readiness = readiness
        self._pages: Mapping[bytes, Callable[[Exchange], None]] = {
            b"/metrics": self._metrics_page.serve,
            b"/healthz": lambda exchange: exchange.respond(_HEALTHZ),
            b"/readyz": lambda exchange: exchange.respond(self._readyz()),
        }

    def serve(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = exchange.request
        page = self._pages.get(request.path)
        if page is None and is_for_api(request.path):
            if self.api is not None:
                serve_asgi(self.api, exchange)
            else:
                exchange.respond(problem(404, "No admin API", self.why_no_api))
        elif page is None:
            known = ", ".join(path.decode() for path in self._pages)
            exchange.respond(problem(404, "Not found", f"Pages of this listener: {known}."))
        elif request.method not in ("GET", "HEAD"):
            allow = ((b"allow", b"GET, HEAD"),)
            exchange.respond(problem(405, "Method not allowed", "Use GET or HEAD.", allow))
        else:
            page(exchange)

    def _readyz(self) -> Response:
        ready = self._readiness.is_ready
        components = {name: component._asdict() for name, component in self._readiness.components.items()}
        body = {"status": self._readiness.status, "components": components}
        return Response(200 if ready else 503, JSON, json.dumps(body, indent=2).encode() + b"\n")


_HEALTHZ = Response(200, JSON, b'{"status": "alive"}\n')
"""A constant: the answer itself shows that the event loop runs."""


def is_for_api(path: bytes) -> bool:
    """Whether *path* belongs to the admin API."""
    return path == API_PATH or path.startswith(API_PATH + b"/")
