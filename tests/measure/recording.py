"""
Measures what recording decisions costs: processor time for each row, of the worker and of the writer.

`python -m tests.measure.recording` prints the least of several rounds, as other programs disturb a
measurement. Everything runs in one process.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

from sidecar.domain.answers import Decision
from sidecar.domain.path_masks import PathMasks
from sidecar.domain.policy import AccessRequest
from sidecar.services.decision_recorder import DecisionRecorder
from sidecar.stores.decisions.frames import FRAME_BYTES_MAX
from sidecar.stores.decisions.log_folder import LogFolder
from sidecar.stores.decisions.log_writer import LogWriter
from sidecar.stores.decisions.parquet import connect
from sidecar.stores.decisions.upkeep import FACTOR, MERGE_MEMORY_LIMIT, merge
from tests.building import NOW_US, make_decider, make_integration, make_key

ROWS = 50_000
"""Rows of a batch, as at the highest rate."""
PATHS = 5_000
ROUNDS = 15

Recorded = tuple[AccessRequest, Decision]


class NoTimers:
    """A loop whose timers never run: frames are sent when they are full."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> object:
        """Ignore *callback*."""
        return None


def decisions() -> list[Recorded]:
    """Decide requests of one integration with different paths, request ids and addresses."""
    key, source = make_key(), random.Random(1)
    decider = make_decider(make_integration(key, rate_limit_rpm=10_000, burst=1_000_000))
    recorded = []
    for number in range(PATHS):
        request_id = f"{source.getrandbits(32):08x}-58d5-4c9e-a3c5-{source.getrandbits(48):012x}"
        headers = {"x-api-key": key.api_key, "x-request-id": request_id}
        request = AccessRequest(
            "GET", f"/v1/orders/{number}?expand=lines", headers.get, f"10.0.{number % 5}.{number % 250}",
            None, None, None, "ext_authz",
        )  # fmt: skip
        decision = decider.decide(request, None, lambda decision, context: None, None)
        assert decision is not None
        recorded.append((request, decision))
    return recorded


def record(recorded: list[Recorded], send: Callable[[bytes], bool]) -> None:
    """Record ROWS decisions."""
    recorder = DecisionRecorder(send, 0, "process", NoTimers())
    for _ in range(ROWS // PATHS):
        for request, decision in recorded:
            recorder.note(request, decision, 25_000)
    recorder.flush()


def measure_worker(recorded: list[Recorded]) -> float:
    """Return the µs of a row for the worker, with a real socket; reading is not counted."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading_s = 0.0

    def send(message: bytes) -> bool:
        nonlocal reading_s
        ours.send(message, socket.MSG_DONTWAIT)
        began_s = process_time()
        theirs.recv(FRAME_BYTES_MAX)
        reading_s += process_time() - began_s
        return True

    results = []
    with ours, theirs:
        for _ in range(ROUNDS):
            reading_s, began_s = 0.0, process_time()
            record(recorded, send)
            results.append((process_time() - began_s - reading_s) / ROWS * 1e6)
    return min(results)


def measure_writer(recorded: list[Recorded]) -> tuple[float, float, float]:
    """Return the µs of a row for receiving frames, for writing a batch, and for merging FACTOR files."""
    frames: list[bytes] = []
    record(recorded, lambda message: not frames.append(message))  # type: ignore[func-returns-value]
    received_us, written_us = [], []
    with TemporaryDirectory() as name:
        folder = LogFolder.open(Path(name), "one", NOW_US)
        writer = LogWriter(folder, PathMasks(()))
        writer.restore(None)
        with connect(folder.path) as connection:
            for _ in range(FACTOR):
                began_s = process_time()
                for frame in frames:
                    writer.receive(frame)
                received_s = process_time()
                batch = writer.cut()
                assert batch is not None
                writer.write(batch, connection)
                writer.written(batch)
                received_us.append((received_s - began_s) / ROWS * 1e6)
                written_us.append((process_time() - received_s) / ROWS * 1e6)
        with connect(folder.path, MERGE_MEMORY_LIMIT) as connection:
            began_s = process_time()
            assert merge(folder.path, connection)
            merged_us = (process_time() - began_s) / ROWS / FACTOR * 1e6
        folder.close()
    return min(received_us), min(written_us), merged_us


def main() -> None:
    """Print the processor time of each part."""
    recorded = decisions()
    received_us, written_us, merged_us = measure_writer(recorded)
    print("processor time for each row:")
    print(f"worker, to pack and send it       {measure_worker(recorded):.2f} µs")
    print(f"writer, to receive it             {received_us:.2f} µs")
    print(f"writer, to write its file         {written_us:.2f} µs")
    print(f"writer, to merge {FACTOR} files       {merged_us:.2f} µs")


if __name__ == "__main__":  # python -m tests.measure.recording
    main()
