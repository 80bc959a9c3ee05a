"""Runs servers and load generators as processes, each pinned to a core."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.programs import free_port as free_port

SERVER_CORE = 0
LOAD_CORE = 1
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
RUN_TIMEOUT_S = 300.0


class BenchError(Exception):
    """A benchmark cannot run, or its measurement is invalid."""


@dataclass(frozen=True, slots=True)
class RunningSidecar:
    """A sidecar process: its pid and its addresses."""

    pid: int
    grpc: str
    admin: str

    def rss_mb(self) -> float:
        """Return the resident memory of the first process, in MB (10^6 bytes)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        if match is None:
            raise BenchError(f"no VmRSS of process {self.pid}")
        return int(match.group(1)) * 1024 / 1e6

    def rss_bytes(self) -> int:
        """Return the resident memory of all its processes."""
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids()]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        """Return the processor time of all its processes, user and system."""
        return sum(map(_cpu_s, self.pids()))

    def pids(self) -> list[int]:
        """Return the pids of the first process and its workers."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return [self.pid, *(int(pid) for task in tasks for pid in (task / "children").read_text().split())]

    def metric(self, line_start: str) -> float:
        """Return the value of the metric line that starts with *line_start*, or 0."""
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=5) as response:
            for line in response.read().decode().splitlines():
                if line.startswith(line_start):
                    return float(line.rsplit(" ", 1)[1])
        return 0.0


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running_sidecar(
    config: Path, grpc: str, admin: str, cores: str = str(SERVER_CORE), python: str = sys.executable
) -> Iterator[RunningSidecar]:
    """
    Run `sidecar serve` with *config*, which listens on *grpc* and *admin*, and wait until it is ready.

    *cores* are in the form of `taskset`; *python* is the interpreter that runs the sidecar.

    Raises:
        BenchError: it does not become ready in time; the message has its output.
    """
    command = [
        "taskset",
        "-c",
        cores,
        str(Path(python).with_name("sidecar")),  # of whatever version is installed there
        "serve",
        "--config",
        str(config),
    ]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            _await_ready(process, admin, log.fileno())
            yield RunningSidecar(process.pid, grpc, admin)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_ready(process: subprocess.Popen[bytes], admin: str, log: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if _is_ready(admin):
            return
        time.sleep(0.05)
    printed = os.pread(log, 1 << 20, 0).decode(errors="replace")
    raise BenchError(f"the sidecar did not become ready (exit code {process.poll()}):\n{printed}")


def _is_ready(admin: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{admin}/readyz", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Load:
    """The result of one h2load run."""

    calls: int
    calls_per_s: float
    latencies_us: tuple[float, ...]

    def percentile_us(self, share: float) -> float:
        """Return the latency that *share* (0 ... 1) of the calls did not exceed."""
        ordered = self.latencies_us
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def h2load(
    target: str,
    method: str,
    body: bytes,
    calls: int,
    connections: int,
    streams: int,
    keep_latencies: bool = False,
) -> Load:
    """
    Send *calls* unary gRPC calls over *connections* × *streams*; every call must succeed.

    *keep_latencies* lets h2load log every call, which takes time and so is not for throughput.

    Raises:
        BenchError: h2load is missing, or a call failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        message = Path(folder, "message")
        message.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
        request = ["-d", str(message), "-H", "content-type: application/grpc", "-H", "te: trailers"]
        return _h2load(
            [*request, "-m", str(streams), *_target(target, method)], calls, connections, keep_latencies
        )


def h1load(
    url: str, headers: Mapping[str, str], calls: int, connections: int, keep_latencies: bool = False
) -> Load:
    """
    Send *calls* HTTP/1.1 requests with *headers* to *url*; every answer must be 2xx.

    Raises:
        BenchError: h2load is missing, or an answer was not 2xx.
    """
    fields = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
    return _h2load(["--h1", *fields, url], calls, connections, keep_latencies)


def _h2load(arguments: Sequence[str], calls: int, connections: int, keep_latencies: bool) -> Load:
    binary = shutil.which("h2load")
    if binary is None:
        raise BenchError("h2load is missing: apt-get install nghttp2-client")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "latencies")
        command = [
            "taskset", "-c", str(LOAD_CORE), binary, "-n", str(calls), "-c", str(connections),
            *([f"--log-file={log}"] if keep_latencies else []), *arguments,
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
        return _parse(result.stdout + result.stderr, calls, log)


def _target(target: str, method: str) -> Sequence[str]:
    if target.startswith("unix:"):
        return [f"--base-uri={target}", f"http://localhost{method}"]
    return [f"http://{target}{method}"]


def _parse(output: str, calls: int, log: Path) -> Load:
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", output)
    succeeded = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output)
    if rate is None or succeeded is None or int(succeeded.group(1)) != calls:
        raise BenchError(f"h2load did not get {calls} answers:\n{output[-2000:]}")
    lines = log.read_text().splitlines() if log.exists() else []
    return Load(calls, float(rate.group(1)), tuple(sorted(float(line.split("\t")[2]) for line in lines)))
