"""The registry file as a source of snapshots: what changed since the last look, compiled."""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

from sidecar.domain.integrations import Integration
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.domain.snapshot import Snapshot
from sidecar.sources.file_faults import FaultList, FileFault, FileFaultsError
from sidecar.sources.yaml_nodes import YamlCancelledError
from sidecar.stores.registry.file.registry_file import load_registry_bytes, parse_registry

LOADING_SWITCH_INTERVAL_S = 0.000_2
"""How long a loading thread may keep the interpreter from the event loop; Python's default is 5 ms."""

Stamp: TypeAlias = tuple[int, int, int, int] | None

UNREAD: Stamp = (0, 0, 0, 0)
"""The stamp of a file that was not read: no look finds the file unchanged."""


class LoadedRegistry(NamedTuple):
    """A registry that can be put into force, remarks on it, and how long loading it took."""

    snapshot: Snapshot
    warnings: tuple[FileFault, ...] = ()
    took_s: float = 0.0


class RegistrySource:
    """
    Reads one registry file again and again. Not thread-safe: one caller at a time.

    A change is only taken up once the file has stopped changing, which two looks in a row tell: a
    file that is being written in place may be valid and yet lack half of its integrations.
    """

    def __init__(self, path: Path, file: str, catalogue: ScopeCatalogue) -> None:
        """Read *path*, which messages call *file*; scopes are those of *catalogue*."""
        self.path = path
        self.file = file
        self._catalogue = catalogue
        self._read_stamp: Stamp = None
        self._unsettled_stamp: Stamp = None
        self._digest = b""
        self._generation_floor = 0
        self._cancelled = threading.Event()
        self.is_settling = False
        """True when the last look saw a change that the next one is to confirm."""
        self.is_unreadable = False
        """True when the file could not be read the last time: each look tries again."""

    def cancel(self) -> None:
        """End a load that another thread does, within milliseconds; from any thread, for good."""
        self._cancelled.set()

    def load(self, previous: Snapshot) -> LoadedRegistry | None:
        """
        Read the file now; None = its content is what was loaded last.

        Integrations that *previous* knows and that have not changed are taken over from it.

        Raises:
            FileFaultsError: it cannot be read or holds mistakes; what was loaded before stays right.
            YamlCancelledError: `cancel` was called.
        """
        started_s = time.monotonic()
        self.is_settling = False
        self._read_stamp = self._stamp()
        self.is_unreadable = False
        try:
            content, digest = load_registry_bytes(self.path, self.file)
            if digest == self._digest:
                return None
            with beside_the_event_loop():
                snapshot, warnings = self._compile(content, previous)
        except FileFaultsError as error:
            if error.is_unreadable:  # not read, so that the next look tries again
                self._read_stamp, self.is_unreadable = UNREAD, True
            raise
        except MemoryError:
            self._read_stamp, self.is_unreadable = UNREAD, True
            faults = FaultList(self.file)
            faults.add_unreadable(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
            raise faults.error() from None
        self._remember_removed(snapshot, previous)
        self._digest = digest
        return LoadedRegistry(snapshot, warnings, time.monotonic() - started_s)

    def _compile(self, content: bytes, previous: Snapshot) -> tuple[Snapshot, tuple[FileFault, ...]]:
        records, warnings = parse_registry(content, self.file, self._catalogue, self._cancelled.is_set)
        queue = deque(records)
        del records  # what was parsed but has not changed is let go of bit by bit
        return Snapshot.compile(tuple(self._numbered(queue, previous)), previous), warnings

    def look(self, previous: Snapshot) -> LoadedRegistry | None:
        """
        Read the file if it has changed since it was read and has stopped changing; None = not so.

        Raises:
            FileFaultsError: as `load`, once for each change; at each look while it cannot be read.
        """
        if self.is_unreadable:
            return self.load(previous)
        stamp = self._stamp()
        if stamp == self._read_stamp:
            self.is_settling = False
            return None
        if not self.is_settling or stamp != self._unsettled_stamp:
            self.is_settling = True
            self._unsettled_stamp = stamp
            return None
        return self.load(previous)

    def _stamp(self) -> Stamp:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size

    def _numbered(self, records: deque[Integration], previous: Snapshot) -> Iterator[Integration]:
        """*records*, taken out, numbered: only one that has changed gets a higher generation."""
        while records:
            if self._cancelled.is_set():
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
        """An id that comes back must get a higher generation than it ever had: one floor for all of them."""
        for id, compiled in previous.integrations.items():
            if id not in snapshot.integrations:
                self._generation_floor = max(self._generation_floor, compiled.generation)


@contextmanager
def beside_the_event_loop() -> Iterator[None]:
    """
    Load much in one go without holding up the event loop's thread.

    Garbage collection would walk over all that is new again and again, with the interpreter locked;
    nothing that is loaded here is garbage, so it is put out of the collector's sight (`gc.freeze`). And
    the loop gets the interpreter back sooner than usual.
    """
    interval_s = sys.getswitchinterval()
    was_collecting = gc.isenabled()
    gc.collect()  # cheap: what was there before is out of sight, too
    gc.disable()
    sys.setswitchinterval(LOADING_SWITCH_INTERVAL_S)
    try:
        yield
    except BaseException:
        gc.collect()  # before it is out of sight: what was refused is garbage
        raise
    finally:
        sys.setswitchinterval(interval_s)
        gc.freeze()
        if was_collecting:
            gc.enable()
