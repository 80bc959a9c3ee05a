"""
Seals what the registry keeps but nobody who reads its store may use: the secrets that sign webhooks.

The keys are Fernet keys (AES-128-CBC with HMAC-SHA256), one a line. The first seals; all of them open, so
that a key is replaced by putting the new one above it. `sidecar.domain` and the stores know only sealed text.
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
    """A key file cannot be used, or a text was not sealed with its keys; the message says what to do."""


class KeySealer:
    """Seals with the first of some keys and opens with any of them."""

    def __init__(self, keys: Sequence[Fernet]) -> None:
        """Take *keys*, at least one."""
        self._keys = MultiFernet(keys)

    def seal(self, text: str) -> str:
        """*text* encrypted, as printable ASCII that is longer by about a third and 80 characters."""
        return self._keys.encrypt(text.encode()).decode()

    def open(self, sealed: str) -> str:
        """
        What was sealed.

        Raises:
            SealError: it was changed, or sealed with a key that is not in the file any more.
        """
        try:
            return self._keys.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise SealError(
                "a sealed secret cannot be opened: put back the key that it was sealed with, below the others"
            ) from None


def read_keys(path: Path) -> KeySealer:
    """
    The sealer of the key file at *path*.

    Raises:
        SealError: it cannot be read, is open to everybody, or a line is no key.
    """
    try:
        with path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            content = stream.read(KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise SealError(f"{path} cannot be read: {error.strerror}; {_how_to_make(path)}") from error
    if mode & OTHERS:
        raise SealError(f"{path} has mode {mode:04o}, so everybody could use its keys: run chmod 640 {path}")
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    if not lines:
        raise SealError(f"{path} holds no key; {_how_to_make(path)}")
    if len(content) > KEY_FILE_BYTES_MAX or len(lines) > KEYS_MAX:
        raise SealError(
            f"{path} is too long for {KEYS_MAX} keys, one a line: take out those no longer needed"
        )
    return KeySealer([_key(path, number, line) for number, line in enumerate(lines, 1)])


def read_or_make_keys(path: Path) -> KeySealer:
    """
    The sealer of the key file at *path*; one that is not there is made, with a fresh key, closed to others.

    Raises:
        SealError: it cannot be made, or as for `read_keys`.
    """
    if not path.exists():
        try:
            _make_keys(path)
        except OSError as error:
            raise SealError(f"{path} cannot be made: {error.strerror}") from None
    return read_keys(path)


def _make_keys(path: Path) -> None:
    """Make *path* whole or not at all; who comes second takes the key of the first."""
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
        # The line is not told: it may be a key with a letter missing.
        raise SealError(f"{path}:{number}: is no key of 44 characters; {_how_to_make(path)}") from None


def _how_to_make(path: Path) -> str:
    return f"make one with: (umask 077; head -c 32 /dev/urandom | base64 | tr +/ -_ > {path})"
