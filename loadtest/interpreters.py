"""
Compares interpreters, or versions of the program, by complete decisions per second in one run.

`python -m loadtest.interpreters PYTHON …`: each PYTHON is an interpreter with this project installed, such as
`.venv/bin/python` of a clone after `make setup PYTHON=…`, possibly at another commit. The first one is the
baseline. All serve the same registry and take turns, round by round, so that a slow phase of the machine
affects all of them. `--store redis` runs one Redis for all of them, on the load's core, and reports its
processor time apart. `--refused` lets nearly every call be refused as rate limited.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from loadtest.bench.decisions import CONNECTIONS, STREAMS, confirm_allowed
from loadtest.bench.processes import (
    LOAD_CORE,
    BenchError,
    RunningSidecar,
    free_port,
    h2load,
    running_sidecar,
)
from loadtest.bench.workload import BURST, CHECK, beside, check_request, write_place
from loadtest.redis_servers import RedisServer, RedisServerError

CALLS = 60_000
ROUNDS = 7
VERSION_TIMEOUT_S = 20.0
_NAME = "import platform; print(platform.python_implementation(), platform.python_version())"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What all contenders serve: calls of a round, whether they are refused, and Redis, None = embedded."""

    calls: int
    redis: RedisServer | None = None
    is_refused: bool = False

    def redis_cpu_s(self) -> float:
        """Return the processor time that Redis has used so far."""
        return 0.0 if self.redis is None else self.redis.cpu_s()


@dataclass(slots=True)
class Contender:
    """One interpreter, its sidecar, and the results of its rounds."""

    python: str
    name: str
    sidecar: RunningSidecar
    body: bytes
    rates_per_s: list[float] = field(default_factory=list)
    cpus_us: list[float] = field(default_factory=list)
    redis_cpus_us: list[float] = field(default_factory=list)

    def load(self, comparison: Comparison) -> None:
        """Send the calls of one round in a closed loop."""
        calls = comparison.calls
        if comparison.redis is not None and not comparison.is_refused:
            comparison.redis.client.flushall()  # so that the bucket is full
        redis_before_s, before_s = comparison.redis_cpu_s(), self.sidecar.cpu_s()
        load = h2load(self.sidecar.grpc, CHECK, self.body, calls, CONNECTIONS, STREAMS)
        self.cpus_us.append((self.sidecar.cpu_s() - before_s) * 1e6 / calls)
        self.redis_cpus_us.append((comparison.redis_cpu_s() - redis_before_s) * 1e6 / calls)
        self.rates_per_s.append(load.calls_per_s)

    def row(self, first: Contender) -> str:
        """Return its table row: medians of the rounds, and the ratio of its rate to that of *first*."""
        rate_per_s = median(self.rates_per_s)
        return (
            f"| {self.python} | {self.name} | {rate_per_s:,.0f}/s | {median(self.cpus_us):.1f} µs |"
            f" {median(self.redis_cpus_us):.1f} µs | {rate_per_s / median(first.rates_per_s):.2f} × |"
        )


def name_of(python: str) -> str:
    """
    Return the implementation and version of an interpreter.

    Raises:
        BenchError: the interpreter does not run.
    """
    command = [python, "-c", _NAME]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=VERSION_TIMEOUT_S
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchError(f"{python} does not run: {error}") from None


@contextmanager
def _contending(python: str, folder: Path, comparison: Comparison) -> Iterator[Contender]:
    name = name_of(python)
    folder.mkdir()
    addresses = (f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    place = write_place(folder, *addresses, "fast", burst=1 if comparison.is_refused else BURST)
    if comparison.redis is not None:
        place = beside(place, "redis.yaml", *addresses, store=comparison.redis.url)
    body = check_request(place.keys[0].api_key)
    with running_sidecar(place.config, place.grpc, place.admin, python=python) as sidecar:
        confirm_allowed(place, body)
        yield Contender(python, name, sidecar, body)


@contextmanager
def _redis(folder: Path) -> Iterator[RedisServer]:
    """Run a Redis on the load's core."""
    server = RedisServer(folder).start()
    try:
        if server.process is not None:
            os.sched_setaffinity(server.process.pid, {LOAD_CORE})
        yield server
    finally:
        server.stop()


def compare(
    pythons: Sequence[str], calls: int, rounds: int, *, has_redis: bool = False, is_refused: bool = False
) -> list[str]:
    """
    Return a Markdown table with a row for each of *pythons*.

    Raises:
        BenchError: an interpreter does not run, or its sidecar does not serve.
        RedisServerError: Redis does not run.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as serving:
        redis = serving.enter_context(_redis(Path(folder, "redis"))) if has_redis else None
        comparison = Comparison(calls, redis, is_refused)
        contenders = []
        for number, python in enumerate(pythons):
            if redis is not None:
                redis.client.flushall()  # the first call of each is allowed
            contenders.append(
                serving.enter_context(_contending(python, Path(folder, str(number)), comparison))
            )
        for _ in range(rounds):
            for contender in contenders:
                contender.load(comparison)
        return [
            "| interpreter | version | decisions | processor time per decision | Redis | ratio to first |",
            "|---|---|---|---|---|---|",
            *(contender.row(contenders[0]) for contender in contenders),
        ]


def main(arguments: list[str] | None = None) -> int:
    """Compare and print; exit code 1 = the measurement failed."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.interpreters", description=__doc__)
    parser.add_argument("python", nargs="+", help="an interpreter with this project installed")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls per round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each (default %(default)s)")
    parser.add_argument(
        "--store", choices=("embedded", "redis"), default="embedded", help="where the buckets are"
    )
    parser.add_argument("--refused", action="store_true", help="nearly every call is refused (429)")
    options = parser.parse_args(arguments)
    has_redis = options.store == "redis"
    try:
        rows = compare(
            options.python, options.calls, options.rounds, has_redis=has_redis, is_refused=options.refused
        )
        print("\n".join(rows))
    except (BenchError, RedisServerError) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
