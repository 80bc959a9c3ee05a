"""
A small HTTP API that answers with the request: method, path, headers and the size of the body.

A request header `x-answer-with: name=value` adds this header to the answer; `x-answer-status: 500` sets the
status. So a caller can see how a proxy changes requests and answers.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY_BYTES_MAX = 16 << 20


class _Echo(BaseHTTPRequestHandler):
    """Answers every method with the request as JSON."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True

    def __getattr__(self, name: str) -> object:
        """Serve every method: BaseHTTPRequestHandler looks for `do_<METHOD>`."""
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        received = self._body_bytes()
        echo = {
            "method": self.command,
            "path": self.path,
            "headers": [[name.lower(), value] for name, value in self.headers.items()],
            "body_bytes": received,
        }
        content = json.dumps(echo).encode()
        self.send_response(int(self.headers.get("x-answer-status", "200")))
        for header in self.headers.get_all("x-answer-with", []):
            name, _, value = header.partition("=")
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body_bytes(self) -> int:
        """Read the complete body; return its size."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            return self._chunked_bytes()
        length = min(int(self.headers.get("content-length", "0")), BODY_BYTES_MAX)
        return len(self.rfile.read(length))

    def _chunked_bytes(self) -> int:
        total = 0
        while size := int(self.rfile.readline(64).split(b";")[0], 16):
            total += len(self.rfile.read(min(size, BODY_BYTES_MAX)))
            self.rfile.readline(4)
        self.rfile.readline(4)
        return total

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: a stopping proxy resets its connections."""


@contextlib.contextmanager
def running_upstream() -> Iterator[int]:
    """Serve on a free port of 127.0.0.1 until the block ends; yields the port."""
    with _Server(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="upstream", daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
