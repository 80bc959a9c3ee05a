"""
Encoding commands in RESP2, the Redis serialization protocol: arrays of bulk strings.

Replies are parsed by hiredis.
"""

from __future__ import annotations

from collections.abc import Iterable


def bulk(value: bytes) -> bytes:
    """Encode one bulk string."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def array_of(count: int) -> bytes:
    """Encode the header of an array of *count* elements."""
    return b"*%d\r\n" % count


def pack(*words: str | bytes | int) -> bytes:
    """Encode one command."""
    return array_of(len(words)) + b"".join(bulk(_as_bytes(word)) for word in words)


def pack_all(commands: Iterable[tuple[str | bytes | int, ...]]) -> bytes:
    """Encode several commands."""
    return b"".join(pack(*command) for command in commands)


def _as_bytes(word: str | bytes | int) -> bytes:
    if isinstance(word, bytes):
        return word
    return str(word).encode()
