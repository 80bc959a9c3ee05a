"""Verifies an exported audit log without a server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from sidecar.domain.audit import AuditFormatError, LogReport, LogVerifier, StoredEntry, parse_anchor

LINE_CHARS_MAX = 4 * 1024 * 1024
CHAINS_MAX = 1_024
_KEYS = {"chain", "sequence", "text", "digest"}


class AuditFileError(Exception):
    """A file is not an export, or cannot be read or written; names the line and the remedy."""


def verify_file(file: Path, anchors: Sequence[str] = ()) -> LogReport:
    """
    Check every chain in an export, also against *anchors*; memory does not grow with the file.

    Raises:
        AuditFileError: the file cannot be read or is not an export, or an anchor is malformed.
    """
    try:
        log = LogVerifier(map(parse_anchor, anchors))
    except AuditFormatError as error:
        raise AuditFileError(str(error)) from None
    try:
        with file.open(encoding="utf-8") as lines:
            for stored in _entries(file, lines):
                if stored.chain not in log.chains and len(log.chains) >= CHAINS_MAX:
                    raise AuditFileError(
                        f"{file} has more than {CHAINS_MAX} chains: it is not an export of this program"
                    )
                log.chain(stored.chain).add(stored)
    except (OSError, UnicodeDecodeError) as error:
        raise AuditFileError(f"{file} cannot be read: {error}") from None
    return log.report()


def _entries(file: Path, lines: TextIO) -> Iterator[StoredEntry]:
    number = 0
    while line := lines.readline(LINE_CHARS_MAX):
        number += 1
        entry = _parsed(line)
        if entry is None:
            raise AuditFileError(
                f"{file}:{number}: not an exported audit entry: {line[:60]!a};"
                " was the export cut off or edited?"
            )
        yield entry


def _parsed(line: str) -> StoredEntry | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or set(fields) != _KEYS:
        return None
    chain, sequence, text, digest = (fields[key] for key in ("chain", "sequence", "text", "digest"))
    is_placed = type(chain) is int and type(sequence) is int and chain >= 0 and sequence > 0
    if not is_placed or not isinstance(text, str) or not isinstance(digest, str):
        return None
    return StoredEntry(chain, sequence, digest, text)
