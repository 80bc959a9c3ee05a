"""API keys, by example. What holds for every key is in tests/property/test_api_keys.py."""

from __future__ import annotations

import doctest
import hashlib
import hmac

import pytest

from sidecar.domain import api_keys
from sidecar.domain.api_keys import (
    CREDENTIAL_ID,
    DIGEST,
    KEY_LENGTH_MAX,
    ApiKeyError,
    checksum,
    credential_id_of,
    digest_of,
    generate_api_key,
    matches,
)

BODY = "sck_q2R8mW0bTz_" + 30 * "0"
KEY = BODY + checksum(BODY)


@pytest.mark.pure
def test_api_keys__examples_in_its_docstrings() -> None:
    """The examples in the module are true."""
    assert doctest.testmod(api_keys) == doctest.TestResults(failed=0, attempted=1)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("abcdefghijklmnopqrstuvwxyz0123", "2LolCm"),
        (30 * "0", "2C8GjS"),
        ("sample000000000000000000000380", "005L47"),
        ("", "000000"),
    ],
)
def test_checksum__known_vectors(body: str, expected: str) -> None:
    """CRC-32 in base62, padded with zeros: the vectors a client library can test against."""
    assert checksum(body) == expected


def test_generate__shape() -> None:
    """A key is prefix, ten characters of id, thirty of secret and six of checksum, all URL-safe."""
    new = generate_api_key()
    prefix, credential_id, tail = new.api_key.split("_")
    assert (prefix, credential_id, len(tail)) == ("sck", new.credential_id, 36)
    assert CREDENTIAL_ID.fullmatch(new.credential_id)
    assert DIGEST.fullmatch(new.digest)


def test_generate__every_key_is_new() -> None:
    """Two keys share neither secret nor id."""
    keys = [generate_api_key() for _ in range(100)]
    assert len({key.api_key[15:] for key in keys}) == len({key.credential_id for key in keys}) == 100


def test_generate__draws_from_the_system_s_random_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty characters of every key, id and secret, come from `secrets`, nothing else."""
    drawn: list[str] = []

    def choice(alphabet: str) -> str:
        drawn.append(alphabet)
        return "z"

    monkeypatch.setattr("sidecar.domain.api_keys.secrets.choice", choice)
    assert generate_api_key().api_key.startswith("sck_zzzzzzzzzz_" + 30 * "z")
    assert drawn == 40 * ["0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"]


@pytest.mark.parametrize("prefix", ["", "my_app", "a" * 17, "prä", "a b", "a,b"])
def test_generate__refuses_a_prefix_that_would_give_useless_keys(prefix: str) -> None:
    """An underscore would make a key of four parts, which is refused wherever it is used."""
    with pytest.raises(ApiKeyError, match="it must be 1-16 of 0-9, A-Z, a-z and '-'"):
        generate_api_key(prefix)


def test_credential_id_of__a_good_key() -> None:
    """The public id is read off the key without any look-up."""
    assert credential_id_of(KEY) == "q2R8mW0bTz"


@pytest.mark.parametrize(
    "api_key",
    ["", "k", "_", "__", "______", 200 * "_", KEY[:-1], KEY + "0", KEY.upper(), f" {KEY}", f"{KEY}\n"],
)
def test_credential_id_of__refuses_junk(api_key: str) -> None:
    """Whatever is not whole is refused."""
    with pytest.raises(ApiKeyError):
        credential_id_of(api_key)


def with_checksum(body: str) -> str:
    """*body* as a key whose checksum is right."""
    return body + checksum(body)


@pytest.mark.parametrize(
    "api_key", [with_checksum("sck_id"), with_checksum("sck_a_b_c"), "sck_íd_0000" + "000000"]
)
def test_credential_id_of__refuses_a_wrong_shape_with_a_right_checksum(api_key: str) -> None:
    """The checksum is public, so anyone can make one: three parts of ASCII are asked for, too."""
    with pytest.raises(ApiKeyError, match="is <prefix>_<credential id>_<secret and checksum>, all ASCII"):
        credential_id_of(api_key)


def test_credential_id_of__refuses_a_long_key() -> None:
    """Nobody makes the sidecar compute a checksum over a megabyte."""
    longest = with_checksum("sck_id_".ljust(KEY_LENGTH_MAX - 6, "0"))
    assert credential_id_of(longest) == "id"
    with pytest.raises(ApiKeyError, match="at most 128 characters"):
        credential_id_of(with_checksum("sck_id_".ljust(KEY_LENGTH_MAX - 5, "0")))


def test_credential_id_of__its_errors_never_hold_the_key() -> None:
    """Errors end up in logs."""
    for broken in (KEY[:-1] + "!", KEY.replace("_", "-")):
        with pytest.raises(ApiKeyError) as refused:
            credential_id_of(broken)
        assert "q2R8" not in str(refused.value)


def test_digest_of__is_sha256_of_the_whole_key() -> None:
    """Others can compute it: 'sha256:' and the hex digest."""
    assert digest_of(KEY) == "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()


def test_matches__the_key_and_no_other() -> None:
    """A key matches its own digest only."""
    digest = hashlib.sha256(KEY.encode()).digest()
    assert matches(KEY, digest)
    assert not matches(KEY + "0", digest)


def test_matches__compares_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is hmac.compare_digest on whole digests, so its time reveals nothing."""
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare_digest(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr("sidecar.domain.api_keys.compare_digest", compare_digest)
    digest = hashlib.sha256(KEY.encode()).digest()
    assert matches(KEY, digest)
    assert compared == [(digest, digest)]
