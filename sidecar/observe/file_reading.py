"""
Reading files that a running process reloads. An unreadable file is not an invalid file.

Reading may fail temporarily: no free file descriptor, an unmounted network volume, a file being replaced. The
caller keeps the last good content, retries every `RETRY_INTERVAL_S`, and reports the failure with a
`ReadEpisode`: one log entry at the start, one at the end, and the gauge `sidecar_files_unreadable`.
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
"""The purposes of reloaded files: the label values of `sidecar_files_unreadable`."""

_log = logging.getLogger("sidecar.files")


class NotRegularFileError(OSError):
    """The path names a folder, a pipe or a device."""


def read_regular_file(path: Path, bytes_max: int) -> bytes:
    """
    Read the file at *path*; of a file larger than *bytes_max*, read one byte more than that.

    Raises:
        NotRegularFileError: the path is not a regular file.
        OSError: the file cannot be read.
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
    """Reports when a file, or a group of files, becomes unreadable and readable again."""

    def __init__(self, metrics: Metrics, kind: str, name: str) -> None:
        """Messages name the file *name*; *kind* is one of `FILE_KINDS`."""
        self._metrics = metrics
        self._kind = kind
        self._name = name
        self._since_s: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the file is unreadable."""
        return self._since_s is not None

    def begin(self, problem: str) -> None:
        """Report that reading failed because of *problem*; has no effect if already reported."""
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
        """Report that reading works again; has no effect if it was not failing."""
        if self._since_s is None:
            return
        lasted_s = round(time.monotonic() - self._since_s, 1)
        self._since_s = None
        self._metrics.add("sidecar_files_unreadable", self._kind, by=-1)
        log_event(
            _log, logging.INFO, "file can be read again", kind=self._kind, file=self._name, lasted_s=lasted_s
        )


def unreadable_kinds(counts: Metrics) -> tuple[str, ...]:
    """The kinds of files that cannot be read now, by *counts*."""
    return tuple(kind for kind in FILE_KINDS if counts.value("sidecar_files_unreadable", kind))
