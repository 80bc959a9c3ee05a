"""
Compares interpreters, or versions of the program, by complete decisions per second in one run.

`python -m loadtest.interpreters PYTHON …`: each PYTHON is an interpreter with this project installed, such as
`.venv/bin/python` of a clone after `make setup PYTHON=…`, possibly at another commit. The first one is the
baseline. All serve the same registry with the embedded store and take turns, round by round, so that a slow
phase of the machine affects all of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from loadtest.bench.decisions import CONNECTIONS, STREAMS, confirm_allowed
from loadtest.bench.processes import BenchError, RunningSidecar, free_port, h2load, running_sidecar
from loadtest.bench.workload import CHECK, check_request, write_place

CALLS = 60_000
ROUNDS = 7
VERSION_TIMEOUT_S = 20.0
_NAME = "import platform; print(platform.python_implementation(), platform.python_version())"


@dataclass(slots=True)
class Contender:
    """One interpreter, its sidecar, and the results of its rounds."""

    python: str
    name: str
    sidecar: RunningSidecar
    body: bytes
    rates_per_s: list[float] = field(default_factory=list)
    cpus_us: list[float] = field(default_factory=list)

    def load(self, calls: int) -> None:
        """Send *calls* in a closed loop."""
        before_s = self.sidecar.cpu_s()
        load = h2load(self.sidecar.grpc, CHECK, self.body, calls, CONNECTIONS, STREAMS)
        self.cpus_us.append((self.sidecar.cpu_s() - before_s) * 1e6 / calls)
        self.rates_per_s.append(load.calls_per_s)

    def row(self, first: Contender) -> str:
        """Return its table row: medians of the rounds, and the ratio of its rate to that of *first*."""
        rate_per_s = median(self.rates_per_s)
        return (
            f"| {self.python} | {self.name} | {rate_per_s:,.0f}/s | {median(self.cpus_us):.1f} µs |"
            f" {rate_per_s / median(first.rates_per_s):.2f} × |"
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
def _contending(python: str, folder: Path) -> Iterator[Contender]:
    name = name_of(python)
    folder.mkdir()
    place = write_place(folder, f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", "fast")
    body = check_request(place.keys[0].api_key)
    with running_sidecar(place.config, place.grpc, place.admin, python=python) as sidecar:
        confirm_allowed(place, body)
        yield Contender(python, name, sidecar, body)


def compare(pythons: Sequence[str], calls: int, rounds: int) -> list[str]:
    """
    Return a Markdown table with a row for each of *pythons*.

    Raises:
        BenchError: an interpreter does not run, or its sidecar does not serve.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as serving:
        contenders = [
            serving.enter_context(_contending(python, Path(folder, str(number))))
            for number, python in enumerate(pythons)
        ]
        for _ in range(rounds):
            for contender in contenders:
                contender.load(calls)
        return [
            "| interpreter | version | decisions | processor time per decision | ratio to the first |",
            "|---|---|---|---|---|",
            *(contender.row(contenders[0]) for contender in contenders),
        ]


def main(arguments: list[str] | None = None) -> int:
    """Compare and print; exit code 1 = the measurement failed."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.interpreters", description=__doc__)
    parser.add_argument("python", nargs="+", help="an interpreter with this project installed")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls per round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each (default %(default)s)")
    options = parser.parse_args(arguments)
    try:
        print("\n".join(compare(options.python, options.calls, options.rounds)))
    except BenchError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
