"""Where a request carries its API key, and that it carries exactly one."""

from __future__ import annotations

import pytest

from sidecar.domain.credential_sources import (
    DEFAULT_SOURCES,
    IDENTITY_HEADERS,
    AmbiguousCredentialError,
    CredentialSource,
    CredentialSourceError,
    CredentialSources,
)


def find(headers: dict[str, str], *sources: CredentialSource) -> tuple[str, str] | None:
    """Look for a key in *headers*."""
    return CredentialSources(sources or DEFAULT_SOURCES).find(headers.get)


def test_find__nothing() -> None:
    """No header, no key."""
    assert find({}) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-api-key": "k"}, ("k", "x-api-key")),
        ({"authorization": "Bearer k"}, ("k", "authorization")),
        ({"authorization": "bearer k"}, ("k", "authorization")),
        ({"authorization": "BEARER  k "}, ("k", "authorization")),
        ({"x-api-key": "", "authorization": "Bearer k"}, ("k", "authorization")),
        ({"x-api-key": "k", "authorization": "Basic dTpw"}, ("k", "x-api-key")),
        ({"x-api-key": "k", "authorization": "Bearer"}, ("k", "x-api-key")),
        ({"x-api-key": "k", "authorization": ""}, ("k", "x-api-key")),
    ],
)
def test_find__one_key(headers: dict[str, str], expected: tuple[str, str]) -> None:
    """The key and the header that carried it; empty headers and other schemes carry none."""
    assert find(headers) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Basic dTpw"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearerk"},
        {"authorization": "k"},
        {"x-api-key": ""},
    ],
)
def test_find__no_key_in_the_headers_there_are(headers: dict[str, str]) -> None:
    """Another scheme, or a scheme without a key, is no key of ours."""
    assert find(headers) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "k1,k2"},
        {"x-api-key": "k1,"},
        {"authorization": "Bearer k1,Bearer k2"},
        {"authorization": "Bearer k1,Basic dTpw"},
        {"x-api-key": "k1", "authorization": "Bearer k2"},
        {"x-api-key": "k1", "authorization": "Bearer k1"},
    ],
)
def test_find__refuses_more_than_one_key(headers: dict[str, str]) -> None:
    """A repeated header or a second source is refused: which one the upstream would believe is unknown."""
    with pytest.raises(AmbiguousCredentialError, match="send exactly one"):
        find(headers)


def test_find__configured_sources_only() -> None:
    """Headers that are no source are never looked at."""
    source = CredentialSource("x-token", scheme="Key")
    assert find({"x-api-key": "k1", "x-token": "Key k2"}, source) == ("k2", "x-token")
    assert find({"x-api-key": "k1"}, source) is None


@pytest.mark.parametrize("header", ["", "X-Api-Key", "x_api_key", "x api", ":path", "x-kéy", "a" * 65, "x\n"])
def test_source__refuses_what_is_no_header_name(header: str) -> None:
    """Upper case would never match, underscores are dropped or confused by proxies."""
    with pytest.raises(CredentialSourceError, match="must be a lower-case header name without '_'"):
        CredentialSource(header)


@pytest.mark.parametrize("scheme", ["", "Bearer ", "Api Key", "Bearer,", "é"])
def test_source__refuses_what_is_no_scheme(scheme: str) -> None:
    """A scheme that no value could begin with would refuse every request."""
    with pytest.raises(CredentialSourceError, match="must be a scheme such as 'Bearer'"):
        CredentialSource("authorization", scheme)


@pytest.mark.parametrize("header", IDENTITY_HEADERS)
def test_source__refuses_the_headers_that_answers_set(header: str) -> None:
    """
    A key in an identity header would be set and removed in one answer.

    Envoy removes last, so the upstream would lose the identity.
    """
    with pytest.raises(CredentialSourceError, match="is set by the sidecar itself"):
        CredentialSource(header)
