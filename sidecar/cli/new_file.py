"""Writes an export to a new file, complete or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sidecar.cli.exits import CommandError


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """
    Create a file that appears as *path* only if the block succeeds.

    Only its owner can read it, and it never replaces another file: an export is evidence.

    Raises:
        CommandError: the file exists, or cannot be written.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # unlike a rename, it never replaces
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError:
        raise CommandError(f"{path} exists; name another file, or move it away") from None
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror or error}") from None
