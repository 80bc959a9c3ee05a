"""
The right to replace files of a sidecar's folder: compaction, retention and erasure take turns.

Without it a compaction that has read a file before an erasure would write the erased rows again.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidecar.stores.decisions.segments import FILE_MODE

LOCK_FILE = "rewriting"
"""An empty file; who holds its lock (flock) may replace and remove files of the folder."""
_RETRY_S = 0.05


@contextmanager
def rewriting(folder: Path, deadline_s: float) -> Iterator[None]:
    """
    Hold the right to replace files of *folder*; wait up to *deadline_s* for it.

    Writing a new batch does not need it. The kernel releases the lock of a process that ends.

    Raises:
        TimeoutError: another process holds it.
        OSError: the lock file cannot be opened.
    """
    ends_at = time.monotonic() + deadline_s
    fd = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        while not _locked(fd):
            if time.monotonic() >= ends_at:
                raise TimeoutError(f"another process rewrites files of {folder}; try again later")
            time.sleep(_RETRY_S)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
