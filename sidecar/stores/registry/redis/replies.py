"""Parsing the registry's replies into domain values; malformed data raises `RegistryDamagedError`."""

from __future__ import annotations

from typing import Any

from sidecar.domain.audit import ChainHead, StoredEntry, empty_chain
from sidecar.stores.registry.base import FoundRecord
from sidecar.stores.registry.protocol import LastUse, RefusedCaller, TokenUse
from sidecar.stores.registry.results import parse_stored, record_of

DELETED = b"deleted"
RECORD_FIELDS = ("record", "status")
"""The hash fields of a record that are read, in the order that `found_record` expects."""


def found_record(reply: list[Any]) -> FoundRecord | None:
    """Parse the reply to HMGET of `RECORD_FIELDS`; None = unknown integration."""
    if reply[0] is None:
        return None
    return FoundRecord(record_of(reply[0]), reply[1] == DELETED)


def head_of(chain: int, reply: list[Any]) -> ChainHead:
    """Parse the reply to XREVRANGE of the audit stream with COUNT 1."""
    if not reply:
        return empty_chain(chain)

    def read() -> ChainHead:
        entry_id, fields = reply[0]
        return ChainHead(chain, sequence_of(entry_id), fields[1].decode(), int(fields[3]))

    return parse_stored("the latest audit entry", read)


def entry_of(chain: int, reply: list[Any]) -> StoredEntry:
    """Parse one entry of XRANGE or XREVRANGE of the audit stream."""

    def read() -> StoredEntry:
        entry_id, fields = reply
        return StoredEntry(chain, sequence_of(entry_id), fields[1].decode(), fields[5].decode())

    return parse_stored("an audit entry", read)


def sequence_of(entry_id: bytes) -> int:
    """Parse the sequence in the id of a stream entry."""
    return int(entry_id.partition(b"-")[0])


def last_use_of(text: bytes) -> LastUse:
    """Parse the latest use of a credential."""

    def read() -> LastUse:
        at_us, _, address = text.decode().partition(" ")
        return LastUse(int(at_us), bytes.fromhex(address))

    return parse_stored("a credential's use", read)


def refused_caller_of(integration_id: str, caller: bytes, at_us: bytes) -> RefusedCaller:
    """Parse a caller that an allowlist refused."""

    def read() -> RefusedCaller:
        credential_id, _, address = caller.decode().partition(" ")
        return RefusedCaller(integration_id, credential_id, bytes.fromhex(address), int(float(at_us)))

    return parse_stored("a refused caller", read)


def token_use_of(token_id: bytes, text: bytes) -> TokenUse:
    """Parse the latest use of an administrator's token."""

    def read() -> TokenUse:
        at_us, _, source = text.decode().partition(" ")
        return TokenUse(token_id.decode(), int(at_us), source)

    return parse_stored("a token's use", read)
