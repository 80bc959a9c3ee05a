"""The folder of the rate-limit files as a source of rules."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sidecar.domain.rate_limits.counters import Algorithm
from sidecar.domain.rate_limits.decisions import LimitStyle
from sidecar.domain.rate_limits.rules import RateLimits
from sidecar.observe.file_reading import read_regular_file
from sidecar.process.file_watch import UNREAD, WatchedSource, file_stamp
from sidecar.process.registry_source import without_garbage_collection
from sidecar.process.settings import RateLimitSettings
from sidecar.sources.file_faults import FaultList, FileFault
from sidecar.sources.rate_limit_nodes import RateLimitReader
from sidecar.sources.yaml_nodes import YamlCancelledError

FILES_MAX = 1_000
FILE_BYTES_MAX = 4 << 20
"""A file of 100,000 values, the most that is read, takes 2 MB."""


class LoadedRateLimits(NamedTuple):
    """Loaded rules, warnings about them, and how long loading took."""

    limits: RateLimits = RateLimits()
    warnings: tuple[FileFault, ...] = ()
    took_s: float = 0.0


class RateLimitsSource(WatchedSource):
    """
    Reads all files of a folder and its sub-folders, in the order of their paths, or a single file.

    Names that begin with a dot are skipped: files of editors, and copies that Kubernetes keeps of a
    ConfigMap.
    """

    def __init__(self, path: Path, settings: RateLimitSettings) -> None:
        """Read *path*, with the *settings* of its domains."""
        super().__init__(str(path))
        self.path = path
        self._settings = settings
        self._digest: bytes | None = None

    def load(self) -> LoadedRateLimits | None:
        """
        Read all files now; None = their content is the same as at the last load.

        Raises:
            FileFaultsError: they cannot be read or hold mistakes; the previous rules stay in force.
            YamlCancelledError: `cancel` was called.
        """
        started_s = time.monotonic()
        self.is_settling = False
        self.read_stamp = self.stamp()
        self.is_unreadable = False
        faults = FaultList(self.file)
        contents = self._contents(faults)
        digest = hashlib.sha256(repr(contents).encode()).digest()
        if digest == self._digest and not faults:
            return None
        reader = RateLimitReader(faults, self._algorithm_of, self._settings.merge_domains)
        with without_garbage_collection():
            for file, content in contents:
                if self.cancelled.is_set():
                    raise YamlCancelledError
                reader.read(content, file)
            faults.raise_any()
        self._digest = digest
        warnings = (*reader.warnings, *self._remarks(reader.limits()))
        return LoadedRateLimits(reader.limits(), warnings, time.monotonic() - started_s)

    def poll(self) -> LoadedRateLimits | None:
        """
        Read the files if they have changed and are no longer being written; None = not read, or unchanged.

        Raises:
            FileFaultsError: as `load`, once for each change; at each poll while they cannot be read.
        """
        return self.load() if self.has_settled_change() else None

    def stamp(self) -> object:
        """See `WatchedSource`."""
        try:
            return tuple((str(path), file_stamp(path)) for path in self._files())
        except OSError:
            return None

    def _files(self) -> list[Path]:
        """
        The files to read, in order.

        Raises:
            OSError: the folder cannot be read.
        """
        if not self.path.is_dir():
            return [self.path]
        return sorted(_below(self.path))

    def _contents(self, faults: FaultList) -> list[tuple[str, bytes]]:
        contents = []
        try:
            files = self._files()
            if len(files) > FILES_MAX:
                faults.add(None, "", f"holds more than {FILES_MAX} files; is it the right folder?")
                faults.raise_any()
            for path in files:
                content = read_regular_file(path, FILE_BYTES_MAX)
                if len(content) > FILE_BYTES_MAX:
                    problem = f"is larger than {FILE_BYTES_MAX >> 20} MiB; is it the right file?"
                    faults.put(FileFault(str(path), None, "", problem))
                else:
                    contents.append((str(path), content))
        except OSError as error:
            self.read_stamp, self.is_unreadable = UNREAD, True
            unreadable = FaultList(str(error.filename or self.file))
            unreadable.add_unreadable(error)
            unreadable.raise_any()
        return contents

    def _algorithm_of(self, domain: str) -> Algorithm:
        return Algorithm(self._settings.algorithm_of(domain))

    def _remarks(self, limits: RateLimits) -> Iterator[FileFault]:
        """Warnings of settings that the files do not match."""
        if not limits.domains:
            yield FileFault(self.file, None, "", "holds no rate-limit files: nothing is limited")
        for domain in self._settings.domains:
            if domain not in limits.domains:
                problem = f"no file has this domain, so 'rate_limits.domains.{domain}' has no effect"
                yield FileFault(self.file, None, "", problem)


def _below(folder: Path) -> Iterator[Path]:
    count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            below = _below(Path(entry.path)) if entry.is_dir(follow_symlinks=False) else (Path(entry.path),)
            for path in below:
                yield path
                count += 1
                if count > FILES_MAX:
                    return


def limit_style(settings: RateLimitSettings) -> LimitStyle:
    """How calls are counted and answered by *settings*."""
    headers = settings.response_headers
    names = (headers.limit, headers.remaining, headers.reset) if headers.enabled else None
    return LimitStyle(settings.all_or_none, settings.shadow_mode, names, settings.dynamic_metadata)
