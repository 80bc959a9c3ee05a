"""Where a request carries its API key, and that it carries exactly one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

IDENTITY_HEADERS = ("x-integration-id", "x-integration-name", "x-credential-id", "x-decision-id")
"""What an allowed request carries to the upstream, set by the sidecar; never a credential source."""

_SCHEME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}")  # a token, RFC 9110 5.6.2
_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^`|~-]{1,64}")


class CredentialSourceError(ValueError):
    """A credential source names an impossible header or scheme."""


class AmbiguousCredentialError(ValueError):
    """A request carries more than one API key."""


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
        """The API key in a header *value*; None = it carries none."""
        if self.scheme is None:
            return value
        scheme, _, key = value.partition(" ")
        return key.strip() if scheme.lower() == self.scheme.lower() else None


DEFAULT_SOURCES = (CredentialSource("x-api-key"), CredentialSource("authorization", "Bearer"))


class CredentialSources:
    """The sources of a configuration, looked at in order."""

    __slots__ = ("sources",)

    def __init__(self, sources: Sequence[CredentialSource] = DEFAULT_SOURCES) -> None:
        """Look at *sources* in this order."""
        self.sources = tuple(sources)

    def find(self, header: Callable[[str], str | None]) -> tuple[str, str] | None:
        """
        Return (API key, name of the header that carried it), or None.

        Args:
            header: returns a request header by lower-case name; repeats joined with ','.

        Raises:
            AmbiguousCredentialError: two sources carry a key, or one header carries several: which
                of them the upstream would believe is unknown, so neither is believed.
        """
        found: tuple[str, str] | None = None
        for source in self.sources:
            value = header(source.header)
            if not value:
                continue
            key = source.key_in(value)
            if not key:
                continue
            if found is not None or "," in value:
                raise AmbiguousCredentialError("more than one API key in the request; send exactly one")
            found = key, source.header
        return found
