"""
Encrypts the webhook secrets of the registry, so that read access to its store is not enough to use them.

The keys are Fernet keys (AES-128-CBC with HMAC-SHA256), one a line. The first key encrypts, all keys decrypt,
so a key is replaced by adding the new one above it. The domain and the stores see only encrypted text.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

KEY_FILE_BYTES_MAX = 16_384
KEYS_MAX = 100
KEY_MODE = 0o600
OTHERS = 0o007


class SealError(Exception):
    """A key file cannot be used, or a secret was encrypted with another key; the message says what to do."""


class KeySealer:
    """Encrypts with the first of several keys, and decrypts with any of them."""

    def __init__(self, keys: Sequence[Fernet]) -> None:
        """Use *keys*, at least one."""
        self._keys = MultiFernet(keys)

    def seal(self, text: str) -> str:
        """*text* encrypted, as printable ASCII that is longer by about a third and 80 characters."""
        return self._keys.encrypt(text.encode()).decode()

    def open(self, sealed: str) -> str:
        """
        Decrypt *sealed*.

        Raises:
            SealError: the text was changed, or its key is no longer in the file.
        """
        try:
            return self._keys.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise SealError(
                "a webhook secret cannot be decrypted: put its key back into the key file, below the others"
            ) from None


def read_keys(path: Path) -> KeySealer:
    """
    Read the key file at *path*.

    Raises:
        SealError: it cannot be read, other users can read it, or a line is not a key.
    """
    try:
        with path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            content = stream.read(KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise SealError(f"{path} cannot be read: {error.strerror}; {_how_to_make(path)}") from error
    if mode & OTHERS:
        raise SealError(f"{path} has mode {mode:04o}, so any user could use its keys: run chmod 640 {path}")
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    if not lines:
        raise SealError(f"{path} is empty; {_how_to_make(path)}")
    if len(content) > KEY_FILE_BYTES_MAX or len(lines) > KEYS_MAX:
        raise SealError(
            f"{path} has more than {KEYS_MAX} keys or {KEY_FILE_BYTES_MAX} bytes: remove unused keys"
        )
    return KeySealer([_key(path, number, line) for number, line in enumerate(lines, 1)])


def read_or_make_keys(path: Path) -> KeySealer:
    """
    Read the key file at *path*; create it first if it is missing, with a new key and mode 0600.

    Raises:
        SealError: it cannot be created, or as for `read_keys`.
    """
    if not path.exists():
        try:
            _make_keys(path)
        except OSError as error:
            raise SealError(f"{path} cannot be created: {error.strerror}") from None
    return read_keys(path)


def _make_keys(path: Path) -> None:
    """Create *path* atomically; if another process was first, its key stays."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, KEY_MODE)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(Fernet.generate_key() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def _key(path: Path, number: int, line: bytes) -> Fernet:
    try:
        return Fernet(line)
    except ValueError:
        # The message leaves out the line: it may be most of a key.
        raise SealError(f"{path}:{number}: not a key of 44 characters; {_how_to_make(path)}") from None


def _how_to_make(path: Path) -> str:
    return f"create one with: (umask 077; head -c 32 /dev/urandom | base64 | tr +/ -_ > {path})"
