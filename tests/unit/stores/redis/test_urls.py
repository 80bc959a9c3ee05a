"""Store URLs: what each form means, what each mistake is told, and that no password is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.stores.redis.urls import Address, Login, StoreTopology, StoreUrlError, TlsClient, parse_store_url

SECRET = "s3cr3t/@:?"
QUOTED = "s3cr3t%2F%40%3A%3F"


@pytest.mark.parametrize(
    ("text", "kind", "addresses", "shown"),
    [
        ("redis://db", StoreTopology.STANDALONE, [Address("db", 6379)], "redis://db:6379"),
        ("redis://db:7000/3", StoreTopology.STANDALONE, [Address("db", 7000)], "redis://db:7000/3"),
        ("redis://[::1]:7000", StoreTopology.STANDALONE, [Address("::1", 7000)], "redis://[::1]:7000"),
        ("rediss://db", StoreTopology.STANDALONE, [Address("db", 6379)], "rediss://db:6379"),
        ("valkey://db", StoreTopology.STANDALONE, [Address("db", 6379)], "redis://db:6379"),
        ("valkeys+cluster://db", StoreTopology.CLUSTER, [Address("db", 6379)], "rediss+cluster://db:6379"),
        ("unix:///run/a.sock", StoreTopology.STANDALONE, [Address(path="/run/a.sock")], "unix:/run/a.sock"),
        (
            "redis+sentinel://a,b:26380/main/2",
            StoreTopology.SENTINEL,
            [Address("a", 26379), Address("b", 26380)],
            "redis+sentinel://a:26379,b:26380/main/2",
        ),
        (
            "rediss+cluster://a,[fe80::1]:7001",
            StoreTopology.CLUSTER,
            [Address("a", 6379), Address("fe80::1", 7001)],
            "rediss+cluster://a:6379,[fe80::1]:7001",
        ),
    ],
)  # fmt: skip
def test_urls__each_form_is_read(
    text: str, kind: StoreTopology, addresses: list[Address], shown: str
) -> None:
    """Kind and addresses; what is shown of it is the place alone."""
    url = parse_store_url(text)
    assert (url.kind, list(url.addresses), str(url)) == (kind, addresses, shown)


def test_urls__options_are_read() -> None:
    """Prefix, partitions, database and users."""
    url = parse_store_url("redis+sentinel://a/main?database=2&prefix=edge:&partitions=32&sentinel_user=watch")
    assert (url.service, url.database, url.prefix, url.partitions) == ("main", 2, "edge:", 32)
    assert url.sentinel_login == Login("watch")


def test_urls__tls_files_are_read() -> None:
    """They belong to the TLS forms alone."""
    url = parse_store_url(
        "rediss://db?ca_file=/ca.pem&cert_file=/c.pem&key_file=/k.pem&server_name=redis.example"
    )
    assert url.tls == TlsClient("/ca.pem", "/c.pem", "/k.pem", "redis.example")


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("http://db", "scheme is 'http'; it must be one of redis, rediss, redis+sentinel"),
        ("db:6379", "scheme"),
        ("redis://", "host is ''; it must be"),
        ("redis://a b", "host is 'a b'; it must be"),
        ("redis://db:0", "port of 'db' is '0'; it must be 1 to 65535"),
        ("redis://db:65536", "'65536'; it must be 1 to 65535"),
        ("redis://db:six", "port of 'db' is 'six'"),
        ("redis://a,b", "several hosts need redis+sentinel:// or redis+cluster://"),
        ("redis://db/zero", "database is 'zero'; it must be a whole number"),
        ("redis://db/1?database=2", "database given more than once"),
        ("redis://db?timeout=5", "option 'timeout' is not one of"),
        ("redis://db?prefix=a&prefix=b", "option 'prefix' given more than once"),
        ("redis://db?prefix=a{b", "key prefix"),
        ("redis://db?partitions=0", "partitions is 0; it must be 1 to 256"),
        ("redis://db?ca_file=/ca.pem", "option 'ca_file' is not one of"),
        ("redis://db?sentinel_user=x", "option 'sentinel_user' is not one of"),
        ("rediss://db?key_file=/k.pem", "key_file needs cert_file"),
        ("redis+sentinel://a", "the Sentinel service is missing"),
        ("redis+cluster://a/1", "Redis Cluster has database 0 only"),
        ("unix://db/socket", "write unix:///absolute/path"),
        ("unix:///", "write unix:///absolute/path"),
        ("redis://db#x", "'#' must be encoded as %23"),
        ("redis://[::1", "store URL"),
        (f"redis://u:{QUOTED}@db?password_env=X", "password given more than once"),
        ("redis://db?password_env=X&password_file=/y", "password given more than once"),
        ("redis://u@db?user=v", "user given more than once"),
    ],
)
def test_urls__each_mistake_is_reported(text: str, reported: str) -> None:
    """The message names the part and what would be right."""
    with pytest.raises(StoreUrlError) as caught:
        parse_store_url(text)
    assert reported in str(caught.value)


@pytest.mark.parametrize("rest", ["db", "db:x", "db?x=y", "a,b", "db/z", "db#f", "", "db?password_env=X"])
@pytest.mark.parametrize("scheme", ["redis", "valkeys", "redis+sentinel", "redis+cluster", "unix", "http"])
def test_urls__no_text_shows_the_password(scheme: str, rest: str) -> None:
    """Neither a good URL's text and repr nor a bad one's message."""
    try:
        url = parse_store_url(f"{scheme}://joe:{QUOTED}@{rest}")
    except StoreUrlError as error:
        shown = str(error)
    else:
        assert url.login.read() == ("joe", SECRET)
        shown = f"{url} {url!r}"
    assert "s3cr3t" not in shown


def test_urls__a_password_without_a_user_is_for_the_default_user() -> None:
    """AUTH with one word."""
    assert parse_store_url(f"redis://:{QUOTED}@db").login.read() == (SECRET,)
    assert parse_store_url("redis://db").login.read() == ()


def test_urls__a_password_file_is_read_each_time(tmp_path: Path) -> None:
    """Rotated without a restart; its line ending is no part of it."""
    file = tmp_path / "password"
    login = parse_store_url(f"redis://db?user=joe&password_file={file}").login
    for password in ("first", "second"):
        file.write_text(f"{password}\n")
        assert login.read() == ("joe", password)


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"x" * 4_097, "larger than 4096"),
        (b"\xff", "utf-8"),
    ],
)
def test_urls__a_bad_password_file_is_named(tmp_path: Path, content: bytes | None, reported: str) -> None:
    """With its path and what is wrong."""
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StoreUrlError) as caught:
        parse_store_url(f"redis://db?password_file={file}").verify()
    assert str(file) in str(caught.value) and reported in str(caught.value)


def test_urls__a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """At start, not at the first connect."""
    monkeypatch.delenv("STORE_PASSWORD", raising=False)
    with pytest.raises(StoreUrlError, match="STORE_PASSWORD"):
        parse_store_url("redis://db?password_env=STORE_PASSWORD").verify()


def test_urls__a_bad_tls_file_is_named(tmp_path: Path) -> None:
    """A missing authority, and a certificate that is none."""
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    for option in (f"ca_file={tmp_path}/missing.pem", f"cert_file={junk}"):
        with pytest.raises(StoreUrlError, match=r"TLS files .*\.pem"):
            parse_store_url(f"rediss://db?{option}").verify()


@given(st.text())
def test_urls__any_text_is_read_or_refused(text: str) -> None:
    """Nothing but StoreUrlError comes out of a bad URL."""
    for candidate in (text, f"redis://{text}", f"redis+sentinel://{text}", f"unix://{text}"):
        try:
            parse_store_url(candidate)
        except StoreUrlError:
            continue
