"""Where a request carries its API key, and that it carries one alone."""

from __future__ import annotations

import pytest

from sidecar.domain.api_keys import checksum
from sidecar.domain.credential_sources import (
    DEFAULT_SOURCES,
    IDENTITY_HEADERS,
    AmbiguousCredentialError,
    CredentialSource,
    CredentialSourceError,
    CredentialSources,
)


def key_of(body: str) -> str:
    """A whole key, the same in every process that collects these tests."""
    return body + checksum(body)


KEY = key_of(f"sck_id_{30 * 'a'}")
OTHER = key_of(f"sck_id_{30 * 'b'}")
BRANDED = key_of(f"acme_id_{30 * 'a'}")
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1In0.c2ln"


def find(headers: dict[str, str], *sources: CredentialSource) -> tuple[str, tuple[str, ...]] | None:
    """Look for a key in *headers*."""
    return CredentialSources(sources or DEFAULT_SOURCES).find(headers.get)


def test_find__nothing() -> None:
    """No header, no key."""
    assert find({}) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-api-key": "k"}, ("k", ("x-api-key",))),
        ({"x-api-key": " k "}, ("k", ("x-api-key",))),
        ({"x-api-key": "k,"}, ("k", ("x-api-key",))),
        ({"authorization": f"Bearer {KEY}"}, (KEY, ("authorization",))),
        ({"authorization": f"bearer {KEY}"}, (KEY, ("authorization",))),
        ({"authorization": f"BEARER  {KEY} "}, (KEY, ("authorization",))),
        ({"authorization": f"Bearer\t{KEY}"}, (KEY, ("authorization",))),
        ({"authorization": "Bearer sck_mistyped"}, ("sck_mistyped", ("authorization",))),
        ({"authorization": f"Bearer {BRANDED}"}, (BRANDED, ("authorization",))),
        ({"x-api-key": "", "authorization": f"Bearer {KEY}"}, (KEY, ("authorization",))),
    ],
)
def test_find__one_key(headers: dict[str, str], expected: tuple[str, tuple[str, ...]]) -> None:
    """The key and the header that carried it; a mistyped key of ours is one, so that it can be reported."""
    assert find(headers) == expected


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Basic dTpw",
        f"Bearer {JWT}",
        f"bearer {JWT}",
        f"Bearer {JWT},Basic dTpw",
        "Bearer ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "Bearer sk_live_4eC39HqLyjWDarjtT1zdp7dc",
        f"Bearer {BRANDED[:-1]}",
        'Digest username="u", realm="r", uri="/"',
        KEY,
    ],
)
def test_find__a_token_of_the_user_s_own(authorization: str) -> None:
    """What is not a key of ours in `authorization` is none, alone or beside a key, and stays where it is."""
    assert find({"authorization": authorization}) is None
    assert find({"x-api-key": "k", "authorization": authorization}) == ("k", ("x-api-key",))


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer "},
        {"authorization": "Bearerk"},
        {"authorization": "k"},
        {"x-api-key": ""},
        {"x-api-key": ","},
    ],
)
def test_find__no_key_in_the_headers_there_are(headers: dict[str, str]) -> None:
    """Another scheme, or a scheme without a key, is no key of ours."""
    assert find(headers) is None


@pytest.mark.parametrize(
    ("headers", "names"),
    [
        ({"x-api-key": f"{KEY},{KEY}"}, ("x-api-key",)),
        ({"x-api-key": f"{KEY}, {KEY}"}, ("x-api-key",)),
        ({"authorization": f"Bearer {KEY},bearer {KEY}"}, ("authorization",)),
        ({"x-api-key": KEY, "authorization": f"Bearer {KEY}"}, ("x-api-key", "authorization")),
    ],
)
def test_find__the_same_key_twice(headers: dict[str, str], names: tuple[str, ...]) -> None:
    """It is one key, and every header that carried it is named."""
    assert find(headers) == (KEY, names)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "k1,k2"},
        {"x-api-key": f"{KEY},{JWT}"},
        {"authorization": f"Bearer {KEY},Bearer {OTHER}"},
        {"x-api-key": KEY, "authorization": f"Bearer {OTHER}"},
        {"x-api-key": JWT, "authorization": f"Bearer {KEY}"},
        {"x-api-key": "k", "authorization": "Bearer sck_mistyped"},
    ],
)
def test_find__refuses_two_different_keys(headers: dict[str, str]) -> None:
    """Which of them the upstream would believe is unknown; in `x-api-key` everything is a key."""
    with pytest.raises(AmbiguousCredentialError, match="two different API keys"):
        find(headers)


@pytest.mark.parametrize("other", ["Basic dTpw", f"Bearer {JWT}"])
def test_find__refuses_a_key_beside_another_value(other: str) -> None:
    """One header carries both, so the key could not be removed without the other."""
    for value in (f"Bearer {KEY},{other}", f"{other},Bearer {KEY}"):
        with pytest.raises(AmbiguousCredentialError, match="a separate header"):
            find({"authorization": value})


def test_find__configured_sources_only() -> None:
    """Headers that are no source are never looked at."""
    source = CredentialSource("x-token", scheme="Key")
    assert find({"x-api-key": "k1", "x-token": f"Key {KEY}"}, source) == (KEY, ("x-token",))
    assert find({"x-api-key": "k1"}, source) is None
    own_token = {"x-api-key": JWT, "authorization": f"Bearer {KEY}"}
    assert find(own_token, DEFAULT_SOURCES[1]) == (KEY, ("authorization",))


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
