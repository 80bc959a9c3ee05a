"""Key files: what is sealed, what is refused, and how a key is replaced."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from sidecar.process.sealing import KEYS_MAX, SealError, read_keys, read_or_make_keys

SECRET = "whsec_" + "A" * 44


def write(path: Path, *keys: bytes, mode: int = 0o600) -> Path:
    """A key file with *keys*, one a line."""
    path.write_bytes(b"".join(key + b"\n" for key in keys))
    path.chmod(mode)
    return path


def test_seal__can_be_opened_and_tells_nothing(tmp_path: Path) -> None:
    """What was sealed opens again, fits the registry's bound, and differs each time."""
    sealer = read_keys(write(tmp_path / "keys", Fernet.generate_key()))
    first, second = sealer.seal(SECRET), sealer.seal(SECRET)
    assert first != second
    assert SECRET not in first
    assert first.isascii()
    assert first.isprintable()
    assert len(first) <= 1_024
    assert sealer.open(first) == sealer.open(second) == SECRET


def test_keys__are_replaced_one_above_the_other(tmp_path: Path) -> None:
    """The first key seals, all of them open; without the old one, what it sealed stays shut."""
    old, new = Fernet.generate_key(), Fernet.generate_key()
    sealed = read_keys(write(tmp_path / "keys", old)).seal(SECRET)
    both = read_keys(write(tmp_path / "keys", new, b"", old))
    assert both.open(sealed) == SECRET
    only_new = read_keys(write(tmp_path / "keys", new))
    assert only_new.open(both.seal(SECRET)) == SECRET
    with pytest.raises(SealError, match="put its key back"):
        only_new.open(sealed)


def test_make__once_and_private(tmp_path: Path) -> None:
    """A file that is not there is made for its owner alone; one that is there is never replaced."""
    path = tmp_path / "registry.sqlite.key"
    sealed = read_or_make_keys(path).seal(SECRET)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_or_make_keys(path).open(sealed) == SECRET
    assert [made.name for made in tmp_path.iterdir()] == [path.name]


def test_make__by_many_at_once(tmp_path: Path) -> None:
    """Processes that start together end up with the same key."""
    sealed: list[str] = []
    threads = [
        threading.Thread(target=lambda: sealed.append(read_or_make_keys(tmp_path / "keys").seal(SECRET)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    sealer = read_keys(tmp_path / "keys")
    assert [sealer.open(text) for text in sealed] == [SECRET] * 8


@pytest.mark.parametrize(
    ("content", "mode", "hint"),
    [
        (b"", 0o600, "is empty"),
        (b"\n \n", 0o600, "is empty"),
        (b"too-short\n", 0o600, r"keys:1: not a key"),
        (Fernet.generate_key() + b"\nQUJD\n", 0o600, r"keys:2: not a key"),
        (Fernet.generate_key(), 0o604, "chmod 640"),
        ((Fernet.generate_key() + b"\n") * (KEYS_MAX + 1), 0o600, "remove unused keys"),
        (b"x" * 100_000, 0o600, "remove unused keys"),
    ],
    ids=("empty", "blank", "no key", "one of two", "readable by all", "too many", "too long"),
)
def test_read__what_cannot_be_used(tmp_path: Path, content: bytes, mode: int, hint: str) -> None:
    """Each fault says where it is and what to do, and never shows a line of the file."""
    path = tmp_path / "keys"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(SealError, match=hint) as caught:
        read_keys(path)
    assert "QUJD" not in str(caught.value)


def test_make__where_it_cannot(tmp_path: Path) -> None:
    """A folder that is not there is named."""
    with pytest.raises(SealError, match="cannot be created: No such file"):
        read_or_make_keys(tmp_path / "none" / "keys")
