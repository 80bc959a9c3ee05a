"""
Finds the API key in a request's headers, and rejects requests with two different keys.

In a header for API keys (`x-api-key`) every value is a key. In a header with a scheme, such as
`authorization: Bearer`, callers also send their users' tokens to the upstream: there, only values in the
form of our keys are keys, and all other values pass unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sidecar.domain.api_keys import is_own_key

IDENTITY_HEADERS: Final = ("x-integration-id", "x-integration-name", "x-credential-id", "x-decision-id")
"""Headers that the sidecar sets on allowed requests; they cannot be credential sources."""

_SCHEME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}")  # a token, RFC 9110 5.6.2
_HEADER_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^`|~-]{1,64}")


class CredentialSourceError(ValueError):
    """A credential source has an invalid header or scheme."""


class AmbiguousCredentialError(ValueError):
    """A request has more than one API key, or a key that cannot be removed; the message is public."""


_TWO_KEYS: Final = "The request has two different API keys. Send only one."
_SHARED_HEADER: Final = (
    "A header has an API key next to another value, so the key cannot be removed before the request is"
    " forwarded. Send the API key in a separate header."
)


@dataclass(frozen=True, slots=True)
class CredentialSource:
    """
    One header that may contain the API key.

    `scheme` None = the whole value is the key; otherwise the value is `<scheme> <key>` (RFC 9110 11.4),
    and values of another scheme are ignored.
    """

    header: str
    scheme: str | None = None

    def __post_init__(self) -> None:
        """
        Reject invalid header names, names with '_', which proxies drop or confuse, and identity headers.

        An identity header would be both set, and removed because it held the key.
        """
        if not _HEADER_NAME.fullmatch(self.header):
            raise CredentialSourceError(
                f"credential header is {self.header!r}; it must be a lower-case header name without '_'"
            )
        if self.header in IDENTITY_HEADERS:
            raise CredentialSourceError(
                f"credential header {self.header!r} is set by the sidecar itself; choose another"
            )
        if self.scheme is not None and not _SCHEME.fullmatch(self.scheme):
            raise CredentialSourceError(
                f"scheme of credential header {self.header!r} is {self.scheme!r}; it must be a scheme such as"
                " 'Bearer', without the space; leave it out if the whole value is the key"
            )

    def key_in(self, value: str) -> str | None:
        """
        Return the API key in a header *value*, repeats joined with ','; None = no key.

        Raises:
            AmbiguousCredentialError: the value has two keys, or another value next to a key.
        """
        if "," not in value:
            return self._single_key(value)
        values = [part for part in value.split(",") if part.strip()]
        keys = {self._single_key(part) for part in values}
        if len(keys) <= 1:
            return keys.pop() if keys else None
        raise AmbiguousCredentialError(_SHARED_HEADER if None in keys else _TWO_KEYS)

    def _single_key(self, value: str) -> str | None:
        if self.scheme is None:
            return value.strip()
        parts = value.split(None, 1)
        if len(parts) < 2 or parts[0].lower() != self.scheme.lower():
            return None
        key = parts[1].strip()
        return key if is_own_key(key) else None


DEFAULT_SOURCES: Final = (CredentialSource("x-api-key"), CredentialSource("authorization", "Bearer"))


class CredentialSources:
    """The configured credential sources, in order."""

    __slots__ = ("sources",)

    def __init__(self, sources: Sequence[CredentialSource] = DEFAULT_SOURCES) -> None:
        """Read *sources* in this order."""
        self.sources = tuple(sources)

    def find(self, header: Callable[[str], str | None]) -> tuple[str, tuple[str, ...]] | None:
        """
        Return (API key, names of its headers); None = the request has no key.

        Args:
            header: returns a request header by lower-case name; repeats joined with ','.

        Raises:
            AmbiguousCredentialError: the request has two different keys (it is unknown which one the
                upstream would use), or another value next to a key.
        """
        found: tuple[str, tuple[str, ...]] | None = None
        for source in self.sources:
            value = header(source.header)
            if not value:
                continue
            key = source.key_in(value)
            if not key:
                continue
            if found is None:
                found = key, (source.header,)
            elif found[0] != key:
                raise AmbiguousCredentialError(_TWO_KEYS)
            elif source.header not in found[1]:
                found = key, (*found[1], source.header)
        return found
