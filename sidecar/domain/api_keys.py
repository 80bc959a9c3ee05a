"""
API keys: format, checksum and digest. The secret itself is never stored.

A key is `<prefix>_<credential id>_<secret><checksum>`, for example
`sck_q2R8mW0bTz_` + 30 base62 characters (178 bits) + 6 base62 characters. The checksum is the
CRC-32 of everything before it: it is not a protection; it detects typos without a look-up.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from typing import Final
from zlib import crc32

# sha256() looks the algorithm up by its name, which takes OpenSSL as long as the digest itself.
_copy_sha256: Final = sha256().copy
_crc32: Final = crc32

PREFIX: Final = "sck"
CREDENTIAL_ID_LENGTH: Final = 10
SECRET_LENGTH: Final = 30
CHECKSUM_LENGTH: Final = 6
KEY_LENGTH_MAX: Final = 128
CREDENTIAL_ID: Final = re.compile(r"[0-9A-Za-z-]{1,32}")
DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")

_OWN_PREFIX: Final = f"{PREFIX}_"
_PREFIX: Final = re.compile(r"[0-9A-Za-z-]{1,16}")

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PAIRS: Final = [high + low for high in _ALPHABET for low in _ALPHABET]


class ApiKeyError(ValueError):
    """An API key is malformed: wrong shape, wrong characters or a wrong checksum."""


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """A new key with its secret, which is not stored anywhere."""

    api_key: str
    credential_id: str
    digest: str


def generate_api_key(prefix: str = PREFIX) -> NewApiKey:
    """
    Generate a key from the system's random source.

    Raises:
        ApiKeyError: *prefix* is invalid.
    """
    if not _PREFIX.fullmatch(prefix):
        raise ApiKeyError(f"prefix is {prefix!r}; it must be 1-16 of 0-9, A-Z, a-z and '-'")
    credential_id = _random_base62(CREDENTIAL_ID_LENGTH)
    body = f"{prefix}_{credential_id}_{_random_base62(SECRET_LENGTH)}"
    api_key = body + checksum(body)
    return NewApiKey(api_key, credential_id, digest_of(api_key))


def credential_id_of(api_key: str) -> str:
    """
    Check the shape and checksum of *api_key* and return its public credential id, without a look-up.

    Raises:
        ApiKeyError: it is not one of our keys. The message never contains the key.
    """
    if len(api_key) > KEY_LENGTH_MAX:
        raise ApiKeyError(f"an API key has at most {KEY_LENGTH_MAX} characters")
    body = api_key[:-CHECKSUM_LENGTH]
    try:
        _, credential_id, _ = body.split("_")
        expected = checksum(body)
    except ValueError:
        raise ApiKeyError("an API key is <prefix>_<credential id>_<secret and checksum>, all ASCII") from None
    if expected != api_key[-CHECKSUM_LENGTH:]:
        raise ApiKeyError("the API key's checksum does not match: it is mistyped or cut off")
    return credential_id


def is_own_key(text: str) -> bool:
    """
    Whether *text*, from a header that may carry other tokens, is one of our keys.

    True if it begins with our prefix, even if mistyped; with another prefix (`sidecar keys new --prefix`)
    only if it is a complete key.
    """
    if text.startswith(_OWN_PREFIX):
        return True
    if text.count("_") != 2:
        return False
    try:
        credential_id_of(text)
    except ApiKeyError:
        return False
    return True


def digest_of(api_key: str) -> str:
    """Return the digest that is stored instead of the key: 'sha256:' and 64 hex digits."""
    return "sha256:" + sha256(api_key.encode()).hexdigest()


def matches(api_key: str, digest: bytes) -> bool:
    """Whether *api_key* has this raw SHA-256 *digest* (32 bytes); compared in constant time."""
    hashed = _copy_sha256()
    hashed.update(api_key.encode())
    return compare_digest(hashed.digest(), digest)


def checksum(body: str) -> str:
    """
    Return the CRC-32 (zlib polynomial) of *body* (ASCII) as six base62 digits, padded with '0'.

    >>> checksum("abcdefghijklmnopqrstuvwxyz0123")
    '2LolCm'
    """
    number = _crc32(body.encode("ascii"))
    rest = number // 3844
    return _PAIRS[rest // 3844] + _PAIRS[rest % 3844] + _PAIRS[number % 3844]


def _random_base62(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
