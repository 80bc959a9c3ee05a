"""
Calls the admin API, and puts it under load: `python -m loadtest.bench.admin_calls FOLDER`.

The load ("hammer") is a closed loop on several connections until standard input ends; then the program
prints the number of answered calls. `hammer.json` in FOLDER describes the load.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

from loadtest.bench.processes import STOP_TIMEOUT_S, BenchError

CALL_TIMEOUT_S = 60.0
READERS = 3
WRITERS = 1
PAGE = 100
LIMITS = 1_000
NEXT_PAGE = re.compile(rb'"next_after": ?"([^"]+)"')


class AdminCalls:
    """One kept-alive connection to an admin API."""

    def __init__(self, address: str, token: str) -> None:
        """Call the API at *address*, 'host:port', with *token*."""
        self._connection = http.client.HTTPConnection(address, timeout=CALL_TIMEOUT_S)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """
        Return the decoded answer of a call.

        Raises:
            BenchError: the API returned an error.
        """
        return json.loads(self.ask(method, path, body))

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """
        Return the undecoded answer of a call, because decoding a large page is slow.

        Raises:
            BenchError: the API returned an error.
        """
        content = None if body is None else json.dumps(body)
        self._connection.request(method, f"/v1{path}", content, self._headers)
        response = self._connection.getresponse()
        answer = response.read()
        if response.status >= 400:
            raise BenchError(f"{method} {path} was answered {response.status}: {answer[:500].decode()}")
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@dataclass(frozen=True, slots=True)
class Hammer:
    """A load: *readers* list pages and *writers* change limits, each on a separate connection."""

    address: str
    token: str
    readers: int = READERS
    writers: int = WRITERS


@dataclass
class Hammered:
    """The number of answered calls, set when the load has ended."""

    reads: int = 0
    changes: int = 0
    elapsed_s: float = 0.0


@contextmanager
def hammering(folder: Path, hammer: Hammer, core: int) -> Iterator[Hammered]:
    """
    Run the load while the block runs, in a new process on *core* with the lowest priority.

    The low priority keeps the load from delaying decisions; in production it would run on another machine.

    Raises:
        BenchError: a call was refused.
    """
    (folder / "hammer.json").write_text(json.dumps(asdict(hammer)))
    placed = ["nice", "-n", "19", "taskset", "-c", str(core)]
    command = [*placed, sys.executable, "-m", __name__, str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    counted = Hammered()
    try:
        if not process.stdout.readline():
            raise BenchError(f"the load did not start: {process.communicate()[1][-500:]}")
        yield counted
        output, complaint = process.communicate(timeout=STOP_TIMEOUT_S)
        if process.returncode:
            raise BenchError(f"the load failed: {complaint.strip()[-500:]}")
        counted.__dict__.update(json.loads(output))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _read(hammer: Hammer, is_over: threading.Event, counts: Hammered) -> None:
    calls, after = AdminCalls(hammer.address, hammer.token), ""
    while not is_over.is_set():
        found = NEXT_PAGE.search(calls.ask("GET", f"/integrations?limit={PAGE}&after={after}"))
        after = found[1].decode() if found is not None else ""
        counts.reads += 1
    calls.close()


def _change(hammer: Hammer, is_over: threading.Event, counts: Hammered, first: int) -> None:
    calls = AdminCalls(hammer.address, hammer.token)
    ids = [item["id"] for item in calls.call("GET", f"/integrations?limit={PAGE}&search=bystander")["items"]]
    for number in count(first):
        if is_over.is_set():
            break
        limit = {"rate_limit_rpm": 1_000 + number % LIMITS}
        calls.call("POST", f"/integrations/{ids[number % len(ids)]}/limit/set", limit)
        counts.changes += 1
    calls.close()


def main(folder: Path) -> None:
    """Run the load of *folder* until standard input ends."""
    hammer = Hammer(**json.loads((folder / "hammer.json").read_text()))
    counts, is_over = Hammered(), threading.Event()
    faults: list[str] = []

    def guarded(work: Any) -> None:
        try:
            work(hammer, is_over, counts)
        except Exception as error:
            faults.append(repr(error))

    apart = LIMITS // max(1, hammer.writers)  # so that no writer repeats a change of another
    changing = [partial(_change, first=apart * writer) for writer in range(hammer.writers)]
    works = [*[_read] * hammer.readers, *changing]
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    started_s = perf_counter()
    for thread in threads:
        thread.start()
    print("hammering", flush=True)
    sys.stdin.read()
    is_over.set()
    for thread in threads:
        thread.join(CALL_TIMEOUT_S)
    counts.elapsed_s = perf_counter() - started_s
    print(json.dumps(asdict(counts)))
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
