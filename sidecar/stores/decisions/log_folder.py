"""
The folder of one sidecar in a decision log: its name, its lock, and whether its last writer ended cleanly.

Two sidecars on a host have the same name while one takes over from the other. The second finds `lock` taken
and adds `-2` to its name. The kernel releases a lock when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
from pathlib import Path

from sidecar.stores.decisions.missing import Cause, MissingSpan
from sidecar.stores.decisions.parquet import TEMPORARY_PREFIX
from sidecar.stores.decisions.segments import FILE_MODE, parse_name, segments_of

LOCK_FILE = "lock"
_MARK_BYTES_MAX = 4_096
SIDECARS_PER_NAME_MAX = 16
"""Sidecars of one name that write at the same time; a take-over needs two."""
FOLDER_MODE = 0o750


class FolderTakenError(OSError):
    """Every name is taken by another sidecar."""


class LogFolder:
    """A locked folder that this process writes; `path` is the folder, `unclean` what its last writer left."""

    def __init__(self, path: Path, lock_fd: int, now_us: int) -> None:
        """Take over *path*, whose lock *lock_fd* is held; remove the files that were not complete."""
        self.path = path
        self._lock_fd = lock_fd
        self._remove_incomplete()
        self.unclean: MissingSpan | None = self._unclean_span(now_us)
        """The span that may miss rows because the last writer did not end cleanly; None = it did."""
        host = socket.gethostname()[:64]  # as in the id by which the registry knows the sidecar
        self._mark({"state": "writing", "host": host, "pid": os.getpid(), "since_us": now_us})

    @classmethod
    def open(cls, log: Path, name: str, now_us: int, preferred: str = "") -> LogFolder:
        """
        Create and lock `log/name`, or `log/name-2` and so on if another sidecar writes there.

        *preferred* is tried first: the folder of a writer that this one replaces.

        Raises:
            FolderTakenError: SIDECARS_PER_NAME_MAX sidecars of this name are writing.
            OSError: the folder cannot be created or locked.
        """
        names = [name, *(f"{name}-{number}" for number in range(2, SIDECARS_PER_NAME_MAX + 1))]
        for candidate in dict.fromkeys([preferred, *names] if preferred else names):
            path = log / candidate
            path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            fd = _try_lock(path / LOCK_FILE)
            if fd is not None:
                return cls(path, fd, now_us)
        raise FolderTakenError(
            f"{log / name}: {SIDECARS_PER_NAME_MAX} sidecars of this name are writing; set decision_log.name"
        )

    def next_number(self) -> int:
        """The number of the next batch: one more than any file has."""
        parsed = (parse_name(path.name) for path in self.path.iterdir())
        return max((segment.last for segment in parsed if segment is not None), default=0) + 1

    def close(self) -> None:
        """Record a clean end, and release the lock."""
        with contextlib.suppress(OSError):  # a full disk: the next start then reports an unclean end
            self._mark({"state": "ended", "host": socket.gethostname()[:64]})
        os.close(self._lock_fd)

    def _unclean_span(self, now_us: int) -> MissingSpan | None:
        """From the last row until now, if the last writer did not end cleanly."""
        os.lseek(self._lock_fd, 0, os.SEEK_SET)
        try:
            mark = json.loads(os.read(self._lock_fd, _MARK_BYTES_MAX) or b"{}")
            since_us = int(mark.get("since_us", 0))
        except (ValueError, AttributeError, TypeError):
            mark, since_us = {"state": "writing"}, 0
        if mark.get("state") != "writing":
            return None
        from_us = max((segment.to_us for segment in segments_of(self.path)), default=0)
        from_us = max(from_us, since_us)
        return MissingSpan(min(from_us, now_us), max(from_us, now_us), -1, -1, -1, Cause.WRITER_ENDED)

    def _mark(self, mark: dict[str, object]) -> None:
        text = json.dumps(mark).encode()
        os.pwrite(self._lock_fd, text, 0)
        os.ftruncate(self._lock_fd, len(text))

    def _remove_incomplete(self) -> None:
        for path in self.path.glob(f"{TEMPORARY_PREFIX}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def host_of(folder: Path) -> str:
    """Return the host of the sidecar that writes, or last wrote, to *folder*; '' = unknown."""
    try:
        with (folder / LOCK_FILE).open("rb") as file:
            return str(json.loads(file.read(_MARK_BYTES_MAX))["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _try_lock(path: Path) -> int | None:
    """Open and lock *path*; return its file descriptor, None = another process holds the lock."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd
