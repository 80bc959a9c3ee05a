"""
The little of RESP that we write by hand: commands as arrays of bulk strings.

Replies are read by hiredis. Source: the Redis serialization protocol specification, RESP2.
"""

from __future__ import annotations

from collections.abc import Iterable


def bulk(value: bytes) -> bytes:
    """One bulk string."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def array_of(count: int) -> bytes:
    """The head of an array of *count* elements."""
    return b"*%d\r\n" % count


def pack(*words: str | bytes | int) -> bytes:
    """One command, ready to be written."""
    return array_of(len(words)) + b"".join(bulk(_as_bytes(word)) for word in words)


def pack_all(commands: Iterable[tuple[str | bytes | int, ...]]) -> bytes:
    """Several commands, to be written at once."""
    return b"".join(pack(*command) for command in commands)


def _as_bytes(word: str | bytes | int) -> bytes:
    if isinstance(word, bytes):
        return word
    return str(word).encode()
