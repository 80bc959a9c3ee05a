"""The client's address by each rule, honest and forged."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sidecar.domain.cidr import AddressError, parse_address, parse_cidr
from sidecar.domain.client_address import HOPS_MAX, ClientAddressRule, ClientHeader, ForwardedFor, PeerAddress
from sidecar.domain.prefix_trie import PrefixTrie

TRUSTED = PrefixTrie([parse_cidr("10.0.0.0/8"), parse_cidr("2001:db8::/32")])


def headers(**values: str) -> Callable[[str], str | None]:
    """A header look-up; underscores in names mean '-'."""
    return {name.replace("_", "-"): value for name, value in values.items()}.get


def no_header(name: str) -> str | None:
    """A look-up that must not be needed."""
    raise AssertionError(f"looked at {name}")


def resolve(rule: ClientAddressRule, peer: str, **values: str) -> bytes:
    """What *rule* finds, packed."""
    return rule.resolve(peer, headers(**values))


def refused(rule: ClientAddressRule, peer: str, **values: str) -> str:
    """Why *rule* finds no address."""
    with pytest.raises(AddressError) as caught:
        rule.resolve(peer, headers(**values))
    return str(caught.value)


@pytest.mark.parametrize(
    "peer", ["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1:51234", "[::ffff:192.0.2.1%4]:80"]
)
def test_peer_address__is_the_peer(peer: str) -> None:
    """Headers are not even looked at; mapped is IPv4."""
    assert PeerAddress().resolve(peer, no_header) == parse_address("192.0.2.1")


@pytest.mark.parametrize("peer", ["", "@", "/run/proxy.sock", "unknown"])
def test_peer_address__unknown_peer(peer: str) -> None:
    """A peer without an address, such as a Unix socket, is not the client, nor trusted to name it."""
    for rule in (PeerAddress(), ForwardedFor(TRUSTED)):
        fault = refused(rule, peer, x_forwarded_for="192.0.2.1")
        assert fault.startswith(f"the peer of the proxy: {peer!r} is not an IP address")
    assert refused(PeerAddress("client_ip"), peer).startswith("client_ip: ")


def test_forwarded_for__untrusted_peer_is_the_client() -> None:
    """A peer that is not a trusted proxy is the client, whatever it claims; its header is not read."""
    assert ForwardedFor(TRUSTED).resolve("192.0.2.1", no_header) == parse_address("192.0.2.1")


@pytest.mark.parametrize(
    ("chain", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1, 10.0.0.2", "192.0.2.1"),
        ("192.0.2.1,10.0.0.3,10.0.0.2", "192.0.2.1"),
        ("10.9.9.9, 192.0.2.1", "192.0.2.1"),
        ("garbage, 192.0.2.1", "192.0.2.1"),
        ("10.0.0.4, 10.0.0.3", "10.0.0.4"),
        ("192.0.2.1:51234", "192.0.2.1"),
        ("\t192.0.2.1 ,\t10.0.0.2:443 ", "192.0.2.1"),
        ("2001:db9::1, [2001:db8::2]:443", "2001:db9::1"),
        ("[2001:db9::1]", "2001:db9::1"),
        ("[2001:db9::1]:80", "2001:db9::1"),
        ("::ffff:192.0.2.1, ::ffff:10.0.0.2", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
        ("192.0.2.1,", "192.0.2.1"),
        ("192.0.2.1, ,\t, 10.0.0.2,,", "192.0.2.1"),
        (",10.0.0.4, ,10.0.0.3", "10.0.0.4"),
        (" , ", "10.0.0.1"),
        ("", "10.0.0.1"),
        ("192.0.2.1:, 10.0.0.2:_hidden", "192.0.2.1"),
        ("fe80::1%4", "fe80::1"),
        ("fe80::1%eth0, 2001:db8::2%25eth0", "fe80::1"),
        ("[fe80::1%25br-lan.7]:443, [2001:db8::2%4]", "fe80::1"),
        ('"[2001:db9::1]:80", "10.0.0.2"', "2001:db9::1"),
    ],
)
def test_forwarded_for__walks_from_the_right_past_trusted_hops(chain: str, client: str) -> None:
    """The client is the first address from the right that is no trusted proxy; the rest is noise."""
    assert resolve(ForwardedFor(TRUSTED), "10.0.0.1", x_forwarded_for=chain) == parse_address(client)


def test_forwarded_for__trusted_peer_without_a_chain() -> None:
    """A request that a trusted proxy began itself is the proxy's own."""
    assert resolve(ForwardedFor(TRUSTED), "10.0.0.1") == parse_address("10.0.0.1")


@pytest.mark.parametrize(
    "chain",
    [
        "unknown",
        "unix:",
        "192.0.2.1, unknown, , 10.0.0.2",
        "192.0.2.1, _hidden, 10.0.0.2",
        "192.0.2.1 10.0.0.2",
        "192.0.2.1:123456",
        "192.0.2.1:80:80",
        "192.0.2.1:x",
        "192.0.2.01",
        "[192.0.2.1]",
        "[192.0.2.1]:80",
        "[2001:db9::1",
        "[2001:db9::1]80",
        "[]",
        "[::g]:1",
        "fe80::1%",
        "fe80::1%eth0%eth1",
        "fe80::1%e th0",
        "fe80::1%eth0/64",
        "192.0.2.1%eth0",
        "%eth0",
        "[%eth0]",
        '"',
        '"192.0.2.1',
        '""192.0.2.1""',
        "for=192.0.2.1",
        "192.0.2.1\N{NO-BREAK SPACE}",
        "192.0.2.\N{ARABIC-INDIC DIGIT ONE}:80",
        "192.0.2.1\n",
    ],
)
def test_forwarded_for__malformed_hop_is_refused(chain: str) -> None:
    """A hop that cannot be read, at the place where it matters, is named, and the client is not known."""
    fault = refused(ForwardedFor(TRUSTED), "10.0.0.1", x_forwarded_for=chain)
    assert fault.startswith("x-forwarded-for: ") and "is not an IP address" in fault
    assert fault.isascii() and fault.isprintable()


def test_forwarded_for__hops_are_bounded() -> None:
    """HOPS_MAX hops are walked; a longer chain of trusted proxies is refused, however it goes on."""
    proxies = ["10.0.0.2"] * (HOPS_MAX - 1)
    within = ", ".join(["192.0.2.1", *proxies])
    beyond = ", ".join(["192.0.2.1", "10.0.0.3", *proxies])
    all_trusted = ", ".join(["10.0.0.4", *proxies])
    rule = ForwardedFor(TRUSTED)
    assert resolve(rule, "10.0.0.1", x_forwarded_for=within) == parse_address("192.0.2.1")
    assert resolve(rule, "10.0.0.1", x_forwarded_for=all_trusted) == parse_address("10.0.0.4")
    for chain in (beyond, "10.0.0.9," + all_trusted, "," * HOPS_MAX + "192.0.2.1" + "," * HOPS_MAX):
        fault = refused(rule, "10.0.0.1", x_forwarded_for=chain)
        assert fault == "x-forwarded-for names more than 16 trusted proxies in a row"


def test_forwarded_for__long_chains_left_of_the_client_do_not_matter() -> None:
    """A client may claim any number of hops; the one that a trusted proxy saw is found all the same."""
    chain = "10.9.9.9," * 1_000 + "192.0.2.1, 10.0.0.2"
    assert resolve(ForwardedFor(TRUSTED), "10.0.0.1", x_forwarded_for=chain) == parse_address("192.0.2.1")


def test_forwarded_for__other_header() -> None:
    """The chain may come in a header of another name."""
    rule = ForwardedFor(TRUSTED, header="x-hops")
    found = resolve(rule, "10.0.0.1", x_hops="192.0.2.1", x_forwarded_for="192.0.2.2")
    assert found == parse_address("192.0.2.1")


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1\t", "192.0.2.1"),
        ("192.0.2.1:8080", "192.0.2.1"),
        ("[2001:db9::1]:8080", "2001:db9::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ('"[2001:db9::1]:8080"', "2001:db9::1"),
    ],
)
def test_client_header__is_what_the_proxy_set(value: str, client: str) -> None:
    """The header's address counts, no matter who the peer is."""
    rule = ClientHeader("x-client-ip")
    assert resolve(rule, "10.0.0.1", x_client_ip=value) == parse_address(client)
    assert resolve(rule, "", x_client_ip=value) == parse_address(client)


@pytest.mark.parametrize("value", ["", "192.0.2.1,192.0.2.2", "192.0.2.1, 192.0.2.1", "unknown", "-"])
def test_client_header__refuses_repeats_and_nonsense(value: str) -> None:
    """A header that came twice (joined with ','), or holds no address, is refused."""
    fault = refused(ClientHeader("x-client-ip"), "192.0.2.9", x_client_ip=value)
    assert fault.startswith(f"x-client-ip: {value!r} is not an IP address")


def test_client_header__absent_is_not_the_peer() -> None:
    """Without the header the client is not known: the peer never replaces it."""
    fault = refused(ClientHeader("x-client-ip"), "192.0.2.9", x_forwarded_for="192.0.2.1")
    assert fault == "the request has no header x-client-ip, which the proxy must set"
