"""
Files that a process reads again while it runs. A file that cannot be read is not an invalid file.

Reading fails for passing reasons: no free file descriptor, a network disk that is away, a file that is
being replaced. Whoever reads a file again keeps the last good content, tries each `RETRY_INTERVAL_S`
until reading works, and says so with a `ReadEpisode`: one log line at the begin, one at the end, and the
gauge `sidecar_files_unreadable` in between.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from pathlib import Path

from sidecar.observe.logs import log_event
from sidecar.observe.metrics import Metrics

RETRY_INTERVAL_S = 1.0
FILE_KINDS = ("configuration", "rate_limits", "registry", "tls")
"""What a file that is read again is for: the label of `sidecar_files_unreadable`."""

_log = logging.getLogger("sidecar.files")


class NotRegularFileError(OSError):
    """The path names a folder, a pipe or a device."""


def read_regular_file(path: Path, bytes_max: int) -> bytes:
    """
    The content of *path*; one byte more than *bytes_max* when the file is larger.

    Raises:
        NotRegularFileError: the path names something else.
        OSError: the file cannot be read now.
    """
    # Without O_NONBLOCK, opening a pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegularFileError(errno.EINVAL, "Not a regular file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read(bytes_max + 1)
    finally:
        os.close(descriptor)


class ReadEpisode:
    """Whether one file, or one group of files, can be read now: told once at each change."""

    def __init__(self, metrics: Metrics, kind: str, name: str) -> None:
        """The file that messages call *name*; *kind* is one of `FILE_KINDS`."""
        self._metrics = metrics
        self._kind = kind
        self._name = name
        self._since_s: float | None = None

    @property
    def is_open(self) -> bool:
        """True while the file cannot be read."""
        return self._since_s is not None

    def begin(self, problem: str) -> None:
        """Reading failed because of *problem*; again: nothing."""
        if self._since_s is not None:
            return
        self._since_s = time.monotonic()
        self._metrics.add("sidecar_files_unreadable", self._kind)
        log_event(
            _log,
            logging.ERROR,
            "file cannot be read, the last content stays in force",
            kind=self._kind,
            file=self._name,
            problem=problem,
            retry_s=RETRY_INTERVAL_S,
        )

    def end(self) -> None:
        """Reading worked, whatever the content is; again: nothing."""
        if self._since_s is None:
            return
        lasted_s = round(time.monotonic() - self._since_s, 1)
        self._since_s = None
        self._metrics.add("sidecar_files_unreadable", self._kind, by=-1)
        log_event(
            _log,
            logging.INFO,
            "file can be read again",
            kind=self._kind,
            file=self._name,
            lasted_s=lasted_s,
        )


def unreadable_kinds(counts: Metrics) -> tuple[str, ...]:
    """The kinds of files that cannot be read now, by *counts*."""
    return tuple(kind for kind in FILE_KINDS if counts.value("sidecar_files_unreadable", kind))
