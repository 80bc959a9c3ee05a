"""An independent client at full speed, nghttp2's h2load: every request succeeds, and every call is OK."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sidecar.transports.server import Endpoint, TlsFiles
from tests.certificates import Authority, write
from tests.waiting import eventually

from .probe import path
from .served import Servers
from .wire import message

REQUESTS = 3_000
CONNECTIONS = 4
STREAMS = 32

SUMMARY = re.compile(
    r"requests: (?P<total>\d+) total, \d+ started, (?P<done>\d+) done, (?P<succeeded>\d+) succeeded, "
    r"(?P<failed>\d+) failed, (?P<errored>\d+) errored, (?P<timeout>\d+) timeout"
)


@pytest.fixture(scope="module")
def h2load() -> str:
    """The h2load executable; a suite that cannot run it has not passed."""
    found = shutil.which("h2load")
    assert found, "h2load is missing: install Debian's nghttp2-client (`apt-get install nghttp2-client`)"
    return found


@pytest.fixture
def endpoint(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Endpoint:
    """A place to listen: TCP, a Unix socket, or TCP with TLS."""
    if request.param == "unix":
        return Endpoint(path=str(tmp_path / "load"))
    if request.param == "tcp":
        return Endpoint("127.0.0.1", 0)
    files = TlsFiles(tmp_path / "server.crt", tmp_path / "server.key")
    write(files, Authority("Load authority").issue("server"))
    return Endpoint("127.0.0.1", 0, tls=files)


def run_h2load(h2load: str, endpoint: Endpoint, body: Path) -> dict[str, int]:
    """Send `REQUESTS` calls of Echo; returns h2load's own count of them."""
    scheme = "http" if endpoint.tls is None else "https"
    where = "localhost" if endpoint.path else str(endpoint)
    unix = [f"--base-uri=unix:{endpoint.path}"] if endpoint.path else []
    command = [
        *(h2load, f"-n{REQUESTS}", f"-c{CONNECTIONS}", f"-m{STREAMS}", f"--data={body}", *unix),
        *("-H", "content-type: application/grpc", "-H", "te: trailers"),
        f"{scheme}://{where}{path('Echo')}",
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    summary = SUMMARY.search(run.stdout)
    assert summary, f"h2load said nothing of its requests: {run.stdout}{run.stderr}"
    return {name: int(count) for name, count in summary.groupdict().items()}


@pytest.mark.parametrize("endpoint", ["tcp", "unix", "tls"], indirect=True)
def test_h2load__every_call_succeeds(
    servers: Servers, h2load: str, endpoint: Endpoint, tmp_path: Path
) -> None:
    """4 connections of 32 streams: no request fails, and the server counts as many calls, all OK."""
    served = servers.start(endpoints=(endpoint,))
    body = tmp_path / "body"
    body.write_bytes(message(b"load"))
    counts = run_h2load(h2load, served.endpoints[0], body)
    assert counts == {"total": REQUESTS, "done": REQUESTS, "succeeded": REQUESTS} | dict.fromkeys(
        ("failed", "errored", "timeout"), 0
    )
    eventually(lambda: served.calls(0) == REQUESTS, what="every call was counted OK")
    assert served.probe.requests == REQUESTS
