"""An OTLP receiver for HTTP with JSON, which keeps the traces that it receives."""

from __future__ import annotations

import gzip
import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TIMEOUT_S = 60


class Receiver:
    """What was received."""

    def __init__(self) -> None:
        """Nothing was received yet."""
        self.received: queue.Queue[dict[str, Any]] = queue.Queue()

    def resource_spans(self) -> dict[str, Any]:
        """Wait for the next export, which is of one process."""
        (spans,) = self.received.get(timeout=TIMEOUT_S)["resourceSpans"]
        found: dict[str, Any] = spans
        return found

    def spans(self) -> list[dict[str, Any]]:
        """Wait for the next export, and return its spans."""
        return [span for scope in self.resource_spans()["scopeSpans"] for span in scope["spans"]]


@contextmanager
def receiving() -> Iterator[tuple[Receiver, str]]:
    """Run a receiver; yield it and its address for `traces.endpoint`."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")
            receiver.received.put(json.loads(body))

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever, name="otlp receiver")
    serving.start()
    try:
        yield receiver, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        serving.join(TIMEOUT_S)
