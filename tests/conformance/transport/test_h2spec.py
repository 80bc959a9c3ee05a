"""
h2spec, where it is installed: 146 cases of RFC 9113 and RFC 7541, all but eight kept.

It is an extra: the rules of this suite cover the same ground with clients that are always there. Where
`h2spec` is not on PATH nothing is collected here, and the end of the test run says so; how to get it
is in docs/develop/conformance.md.
"""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.transports.fast import FastGrpcServer
from sidecar.transports.server import Endpoint, TransportLimits

from .background import BackgroundLoop
from .conftest import H2SPEC

CASES = 146

KNOWN_FAILURES = [
    # RFC 9113 wants a connection error; nghttp2 ignores frames on closed streams and smaller ids.
    "http2/5.1 closed: Sends a DATA frame after sending RST_STREAM frame",
    "http2/5.1 closed: Sends a HEADERS frame after sending RST_STREAM frame",
    "http2/5.1 closed: Sends a DATA frame",
    "http2/5.1 closed: Sends a HEADERS frame",
    "http2/5.1.1 Sends stream identifier that is numerically smaller than previous",
    # RFC 9113 5.3 does away with priorities; nghttp2 does not even read the frame.
    "http2/5.3.1 Sends PRIORITY frame that depend on itself",
    "http2/6.3 Sends a PRIORITY frame with 0x0 stream identifier",
    # nghttp2 closes the connection where resetting the stream would do.
    "http2/6.9.1 Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1 on a "
    "stream",
]
"""What nghttp2 decides otherwise, on purpose; nothing else may fail, and none of these may vanish unseen."""

HTTP_ERROR_DELAY_S = 0.02
"""h2spec spoils a request with a second frame: an error answer at once, though legal, would end it before."""


def run_h2spec(executable: str, endpoint: Endpoint, report: Path) -> list[tuple[str, bool]]:
    """Run all cases against *endpoint*; returns each one's name and whether it passed."""
    where = ["-h", endpoint.host, "-p", str(endpoint.port), "-P", "/"]
    subprocess.run(
        [executable, *where, "-o", "1", "-j", str(report)], capture_output=True, timeout=120, check=False
    )
    cases = ElementTree.parse(report).getroot().iter("testcase")  # noqa: S314 (our own run wrote it)
    return [
        (
            f"{case.get('package')} {case.get('classname')}",
            not {"failure", "error"} & {child.tag for child in case},
        )
        for case in cases
    ]


if H2SPEC:

    def test_h2spec__eight_known_failures(background: BackgroundLoop, tmp_path: Path) -> None:
        """The fast transport passes every case but those that nghttp2 decides otherwise on purpose."""
        assert H2SPEC is not None
        endpoints = (Endpoint("127.0.0.1", 0),)
        server = background.call(
            lambda: FastGrpcServer(
                (), endpoints, TransportLimits(), Metrics(TABLE), _http_error_delay_s=HTTP_ERROR_DELAY_S
            )
        )
        (endpoint,) = background.run(server.start())
        try:
            cases = run_h2spec(H2SPEC, endpoint, tmp_path / "report.xml")
        finally:
            background.run(server.drain(1.0))
        assert len(cases) == CASES
        assert sorted(name for name, passed in cases if not passed) == sorted(KNOWN_FAILURES)
