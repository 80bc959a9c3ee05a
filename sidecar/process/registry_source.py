"""Reads and compiles the registry file whenever it has changed."""

from __future__ import annotations

import errno
import gc
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sidecar.domain.integrations import Integration
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.domain.snapshot import Snapshot
from sidecar.process.file_watch import UNREAD, WatchedSource, file_stamp
from sidecar.sources.file_faults import FaultList, FileFault, FileFaultsError
from sidecar.sources.yaml_nodes import YamlCancelledError
from sidecar.stores.registry.file.registry_file import load_registry_bytes, parse_registry

LOADING_SWITCH_INTERVAL_S = 0.000_2
"""How long a loading thread may hold the interpreter while the event loop waits; Python's default is 5 ms."""


class LoadedRegistry(NamedTuple):
    """A loaded registry, warnings about it, and how long loading took."""

    snapshot: Snapshot
    warnings: tuple[FileFault, ...] = ()
    took_s: float = 0.0


class RegistrySource(WatchedSource):
    """Reads one registry file repeatedly."""

    def __init__(self, path: Path, file: str, catalogue: ScopeCatalogue) -> None:
        """Read *path*, called *file* in messages; valid scopes are those of *catalogue*."""
        super().__init__(file)
        self.path = path
        self._catalogue = catalogue
        self._digest = b""
        self._generation_floor = 0

    def load(self, previous: Snapshot) -> LoadedRegistry | None:
        """
        Read the file now; None = its content is the same as at the last load.

        Unchanged integrations are taken over from *previous*.

        Raises:
            FileFaultsError: it cannot be read or holds mistakes; the previous registry stays in force.
            YamlCancelledError: `cancel` was called.
        """
        started_s = time.monotonic()
        self.is_settling = False
        self.read_stamp = self.stamp()
        self.is_unreadable = False
        try:
            content, digest = load_registry_bytes(self.path, self.file)
            if digest == self._digest:
                return None
            with without_garbage_collection():
                snapshot, warnings = self._compile(content, previous)
        except FileFaultsError as error:
            if error.is_unreadable:  # the next poll tries again
                self.read_stamp, self.is_unreadable = UNREAD, True
            raise
        except MemoryError:
            self.read_stamp, self.is_unreadable = UNREAD, True
            faults = FaultList(self.file)
            faults.add_unreadable(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
            raise faults.error() from None
        self._remember_removed(snapshot, previous)
        self._digest = digest
        return LoadedRegistry(snapshot, warnings, time.monotonic() - started_s)

    def _compile(self, content: bytes, previous: Snapshot) -> tuple[Snapshot, tuple[FileFault, ...]]:
        records, warnings = parse_registry(content, self.file, self._catalogue, self.cancelled.is_set)
        queue = deque(records)
        del records  # unchanged records are freed one by one
        return Snapshot.compile(tuple(self._numbered(queue, previous)), previous), warnings

    def poll(self, previous: Snapshot) -> LoadedRegistry | None:
        """
        Read the file if it has changed and is no longer being written; None = not read, or unchanged.

        Raises:
            FileFaultsError: as `load`, once for each change; at each poll while the file cannot be read.
        """
        return self.load(previous) if self.has_settled_change() else None

    def stamp(self) -> object:
        """See `WatchedSource`."""
        return file_stamp(self.path)

    def _numbered(self, records: deque[Integration], previous: Snapshot) -> Iterator[Integration]:
        """Take out *records* and set their generations: a changed record gets a higher one."""
        while records:
            if self.cancelled.is_set():
                raise YamlCancelledError
            record = records.popleft()
            compiled = previous.integrations.get(record.id)
            if compiled is None:
                yield replace(record, generation=self._generation_floor + 1)
                continue
            before = compiled.record
            unchanged = replace(record, generation=before.generation)
            yield before if unchanged == before else replace(record, generation=before.generation + 1)

    def _remember_removed(self, snapshot: Snapshot, previous: Snapshot) -> None:
        """Raise the floor of generations, so that a removed id that returns gets a higher one than before."""
        for id, compiled in previous.integrations.items():
            if id not in snapshot.integrations:
                self._generation_floor = max(self._generation_floor, compiled.generation)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """
    Run a large load in a background thread without blocking the event loop.

    The garbage collector would scan the new objects repeatedly with the interpreter locked. They are not
    garbage, so `gc.freeze` excludes them. The event loop also gets the interpreter back sooner than usual.
    """
    interval_s = sys.getswitchinterval()
    was_collecting = gc.isenabled()
    gc.collect()  # cheap: earlier objects are frozen
    gc.disable()
    sys.setswitchinterval(LOADING_SWITCH_INTERVAL_S)
    try:
        yield
    except BaseException:
        gc.collect()  # before gc.freeze: the objects of a failed load are garbage
        raise
    finally:
        sys.setswitchinterval(interval_s)
        gc.freeze()
        if was_collecting:
            gc.enable()
