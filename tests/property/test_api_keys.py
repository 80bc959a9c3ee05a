"""What holds for every API key."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.api_keys import (
    CHECKSUM_LENGTH,
    CREDENTIAL_ID,
    KEY_LENGTH_MAX,
    ApiKeyError,
    checksum,
    credential_id_of,
    digest_of,
    generate_api_key,
    matches,
)

BASE62 = string.digits + string.ascii_letters
prefixes = st.text(BASE62 + "-", min_size=1, max_size=16)


@st.composite
def api_keys(draw: st.DrawFn) -> str:
    """A key of our shape."""
    body = (
        f"{draw(prefixes)}_{draw(st.text(BASE62 + '-', min_size=1, max_size=32))}"
        f"_{draw(st.text(BASE62, min_size=20, max_size=40))}"
    )
    return body + checksum(body)


def is_refused(api_key: str) -> bool:
    """Whether the shape or the checksum gives *api_key* away, without a look-up."""
    try:
        credential_id_of(api_key)
    except ApiKeyError:
        return True
    return False


@given(prefixes)
def test_generate__round_trip(prefix: str) -> None:
    """A fresh key of any prefix is one of ours, names its credential and matches its digest."""
    new = generate_api_key(prefix)
    assert credential_id_of(new.api_key) == new.credential_id
    assert CREDENTIAL_ID.fullmatch(new.credential_id)
    assert len(new.api_key) <= KEY_LENGTH_MAX
    assert digest_of(new.api_key) == new.digest
    assert matches(new.api_key, bytes.fromhex(new.digest.removeprefix("sha256:")))


@given(st.data(), api_keys(), st.one_of(st.sampled_from(BASE62), st.characters()))
def test_credential_id_of__refuses_one_character_changed(
    data: st.DataObject, api_key: str, character: str
) -> None:
    """Any one character typed wrong, id and checksum included, is noticed without a look-up."""
    at = data.draw(st.integers(0, len(api_key) - 1))
    typo = api_key[:at] + character + api_key[at + 1 :]
    assert is_refused(typo) == (typo != api_key)


def test_credential_id_of__refuses_every_change_of_one_key() -> None:
    """All 51 places of one key times every printable character: none slips through."""
    api_key = generate_api_key().api_key
    typos = [
        api_key[:at] + character + api_key[at + 1 :]
        for at in range(len(api_key))
        for character in string.printable
        if character != api_key[at]
    ]
    assert len(typos) == 51 * 99
    assert all(map(is_refused, typos))


@given(st.data(), api_keys())
def test_credential_id_of__refuses_neighbors_swapped(data: st.DataObject, api_key: str) -> None:
    """Two neighbors in the wrong order are a burst error of 16 bits, which CRC-32 always notices."""
    at = data.draw(st.integers(0, len(api_key) - CHECKSUM_LENGTH - 2))
    swapped = api_key[:at] + api_key[at + 1] + api_key[at] + api_key[at + 2 :]
    assert is_refused(swapped) == (swapped != api_key)


@given(st.text(max_size=2 * KEY_LENGTH_MAX))
def test_credential_id_of__never_fails_otherwise(text: str) -> None:
    """Whatever is in the header, the outcome is an id or ApiKeyError."""
    is_refused(text)


@pytest.mark.parametrize("text", ["\ud800_\ud800_\ud800000000", "\x00_\x00_\x00000000", "a_b_\u2028000000"])
def test_credential_id_of__refuses_odd_characters(text: str) -> None:
    """Lone surrogates, NUL and line separators are refused, not crashed on."""
    assert is_refused(text)


@given(st.text(st.characters(max_codepoint=127), max_size=100))
def test_checksum__is_six_base62_digits(body: str) -> None:
    """The checksum has one width and no character that needs an escape anywhere."""
    assert len(checksum(body)) == CHECKSUM_LENGTH
    assert set(checksum(body)) <= set(BASE62)
