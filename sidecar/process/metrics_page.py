"""
The page /metrics, rendered a few samples at a time.

A whole page takes several milliseconds, which would delay the decisions on the same event loop. Requests that
arrive while a page is rendered share the next page, so that any number of requests costs one page at a time.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable, Iterator

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from sidecar.transports.http1.exchange import Exchange
from sidecar.transports.http1.messages import Response, problem
from sidecar.transports.http1.work import Pace, WorkQueue

SAMPLES_PER_PIECE = 8
_END = b"# EOF\n"

_log = logging.getLogger("sidecar.process")

Encode = Callable[["_OneFamily"], bytes]


class MetricsPage:
    """Serves the metrics of a registry. Implements `work.Worker`."""

    source = "metrics page"

    def __init__(self, registry: CollectorRegistry, pace: Pace) -> None:
        """Render what *registry* collects, at *pace*."""
        self._registry = registry
        self._pace = pace
        self._queue: WorkQueue | None = None
        self._waiting: dict[str, list[Exchange]] = {}
        self._encoders: dict[str, Encode] = {}
        self._content_type = ""  # of the page in progress; '' = none
        self._readers: list[Exchange] = []
        self._pieces: Iterator[bytes] = iter(())
        self._page: list[bytes] = []
        self._response: Response | None = None  # the finished page, while it is sent

    def serve(self, exchange: Exchange) -> None:
        """Answer with the next page, in the format that the request prefers."""
        accept = b",".join(exchange.request.values(b"accept")).decode("latin-1")
        encode, content_type = choose_encoder(accept)
        self._encoders[content_type] = encode
        self._waiting.setdefault(content_type, []).append(exchange)
        if not self._content_type:
            self._begin()

    def work(self) -> None:
        """Render a piece of the page, or send it to one of its readers (called by the work queue)."""
        if self._response is None:
            self._render()
        elif self._readers:
            self._readers.pop().respond(self._response)
        if self._response is not None and not self._readers:
            self._content_type, self._response = "", None
            if self._waiting:
                self._begin()
            return
        assert self._queue is not None
        self._queue.add(self)

    def _render(self) -> None:
        try:
            piece = next(self._pieces, None)
        except Exception:
            _log.exception("rendering the metrics failed")
            detail = "Rendering the metrics failed; see the sidecar's log."
            self._response = problem(500, "Internal Server Error", detail)
            return
        if piece is not None:
            self._page.append(piece)
        else:
            self._response = Response(200, self._content_type, b"".join(self._page))
            self._page = []

    def _begin(self) -> None:
        if self._queue is None:
            self._queue = WorkQueue(asyncio.get_running_loop(), self._pace)
        content_type = next(iter(self._waiting))
        self._content_type = content_type
        self._readers = self._waiting.pop(content_type)
        self._page = []
        self._pieces = _pieces(self._registry, self._encoders[content_type])
        self._queue.add(self)


class _OneFamily:
    """A registry, for encoders, that holds a part of one metric family."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


def _pieces(registry: CollectorRegistry, encode: Encode) -> Iterator[bytes]:
    """The page of *registry*, in pieces of at most `SAMPLES_PER_PIECE`."""
    is_open_metrics = False
    for family in registry.collect():
        for start in range(0, max(1, len(family.samples)), SAMPLES_PER_PIECE):
            part = copy.copy(family)
            part.samples = family.samples[start : start + SAMPLES_PER_PIECE]
            text = encode(_OneFamily(part))
            if text.endswith(_END):
                is_open_metrics = True
                text = text.removesuffix(_END)
            yield _without_head(text) if start else text
    if is_open_metrics:
        yield _END


def _without_head(text: bytes) -> bytes:
    """*text* without HELP and TYPE, which precede the family's first samples only."""
    return b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"# "))
