"""
Where a request carries its API key, and that it carries one alone.

In a header that is for API keys (`x-api-key`) every value is one. In a header with a scheme, such as
`authorization: Bearer`, callers also carry tokens of their own users, meant for the upstream: there only what
looks like a key of ours is one, and every other value passes untouched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sidecar.domain.api_keys import is_own_key

IDENTITY_HEADERS = ("x-integration-id", "x-integration-name", "x-credential-id", "x-decision-id")
"""What an allowed request carries to the upstream, set by the sidecar; never a credential source."""

_SCHEME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}")  # a token, RFC 9110 5.6.2
_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^`|~-]{1,64}")


class CredentialSourceError(ValueError):
    """A credential source names an impossible header or scheme."""


class AmbiguousCredentialError(ValueError):
    """A request carries more than one API key, or a key that cannot be taken away; the message is public."""


_TWO_KEYS = "The request carries two different API keys. Send one of them alone."
_SHARED_HEADER = (
    "A header carries an API key beside another value, so the key cannot be removed before the request is"
    " passed on. Send the API key in a header of its own."
)


@dataclass(frozen=True, slots=True)
class CredentialSource:
    """
    One header that may carry the API key.

    `scheme` None = the whole value is the key; else the value is `<scheme> <key>` (RFC 9110 11.4),
    and a value of another scheme is not ours.
    """

    header: str
    scheme: str | None = None

    def __post_init__(self) -> None:
        """
        Refuse names that are no header, and underscores, which proxies drop or confuse.

        A header that the answer sets is refused, too: it would be set and, being the key's, removed.
        """
        if not _HEADER_NAME.fullmatch(self.header):
            raise CredentialSourceError(
                f"credential header {self.header!r} must be a lower-case header name without '_'"
            )
        if self.header in IDENTITY_HEADERS:
            raise CredentialSourceError(
                f"credential header {self.header!r} is set by the sidecar itself; choose another"
            )
        if self.scheme is not None and not _SCHEME.fullmatch(self.scheme):
            raise CredentialSourceError(
                f"scheme {self.scheme!r} of credential header {self.header!r} must be a scheme such as"
                " 'Bearer', without the space; leave it out if the whole value is the key"
            )

    def key_in(self, value: str) -> str | None:
        """
        The API key in a header *value*, repeats joined with ','; None = it carries none.

        Raises:
            AmbiguousCredentialError: it carries two keys, or something else beside a key.
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


DEFAULT_SOURCES = (CredentialSource("x-api-key"), CredentialSource("authorization", "Bearer"))


class CredentialSources:
    """The sources of a configuration, looked at in order."""

    __slots__ = ("sources",)

    def __init__(self, sources: Sequence[CredentialSource] = DEFAULT_SOURCES) -> None:
        """Look at *sources* in this order."""
        self.sources = tuple(sources)

    def find(self, header: Callable[[str], str | None]) -> tuple[str, tuple[str, ...]] | None:
        """
        Return (API key, names of the headers that carried it), or None.

        Args:
            header: returns a request header by lower-case name; repeats joined with ','.

        Raises:
            AmbiguousCredentialError: the request carries two different keys (which of them the upstream
                would believe is unknown, so neither is believed), or a key beside something else.
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
