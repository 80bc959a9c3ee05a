"""What the registry's replies say: values of the domain out of bytes, or that the store is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from sidecar.domain.accounts import Administrator, parse_administrator
from sidecar.domain.audit import ChainHead, StoredEntry, empty_chain
from sidecar.domain.integrations import Integration
from sidecar.domain.records import from_stored
from sidecar.stores.registry.protocol import LastUse, RefusedCaller, RegistryDamagedError, TokenUse

Value = TypeVar("Value")

DELETED = b"deleted"
RECORD_FIELDS = ("record", "status")
"""What is read of a record, in the order of `found_record`."""

_FORMAT_ERRORS = (ArithmeticError, LookupError, TypeError, ValueError)


class FoundRecord(NamedTuple):
    """A record as found; of a deleted integration what is kept of it."""

    record: Integration
    is_deleted: bool


def found_record(reply: list[Any]) -> FoundRecord | None:
    """Of HMGET of `RECORD_FIELDS`; None = there never was one."""
    if reply[0] is None:
        return None
    return FoundRecord(record_of(reply[0]), reply[1] == DELETED)


def record_of(text: bytes) -> Integration:
    """An integration's record."""
    return _read("an integration's record", lambda: from_stored(json.loads(text)))


def account_of(text: bytes) -> Administrator:
    """An administrator's record."""
    return _read("an administrator's record", lambda: parse_administrator(json.loads(text)))


def head_of(chain: int, reply: list[Any]) -> ChainHead:
    """Of XREVRANGE of the audit stream with COUNT 1."""
    if not reply:
        return empty_chain(chain)

    def read() -> ChainHead:
        entry_id, fields = reply[0]
        return ChainHead(chain, sequence_of(entry_id), fields[1].decode(), int(fields[3]))

    return _read("the latest audit entry", read)


def entry_of(chain: int, reply: list[Any]) -> StoredEntry:
    """One entry of XRANGE or XREVRANGE of the audit stream."""

    def read() -> StoredEntry:
        entry_id, fields = reply
        return StoredEntry(chain, sequence_of(entry_id), fields[1].decode(), fields[5].decode())

    return _read("an audit entry", read)


def sequence_of(entry_id: bytes) -> int:
    """The sequence in the id of a stream's entry."""
    return int(entry_id.partition(b"-")[0])


def last_use_of(text: bytes) -> LastUse:
    """The latest use of a credential."""

    def read() -> LastUse:
        at_us, _, address = text.decode().partition(" ")
        return LastUse(int(at_us), bytes.fromhex(address))

    return _read("a credential's use", read)


def refused_caller_of(integration_id: str, caller: bytes, at_us: bytes) -> RefusedCaller:
    """A caller that an allowlist refused."""

    def read() -> RefusedCaller:
        credential_id, _, address = caller.decode().partition(" ")
        return RefusedCaller(integration_id, credential_id, bytes.fromhex(address), int(float(at_us)))

    return _read("a refused caller", read)


def token_use_of(token_id: bytes, text: bytes) -> TokenUse:
    """The latest use of an administrator's token."""

    def read() -> TokenUse:
        at_us, _, source = text.decode().partition(" ")
        return TokenUse(token_id.decode(), int(at_us), source)

    return _read("a token's use", read)


def _read(what: str, read: Callable[[], Value]) -> Value:
    try:
        return read()
    except _FORMAT_ERRORS as error:
        raise RegistryDamagedError(
            f"{what} cannot be read ({error!r}): verify the audit log, and restore a backup"
        ) from error
