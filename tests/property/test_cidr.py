"""Addresses, blocks and overlaps for every input, against the standard library's ipaddress."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.domain.cidr import (
    AddressError,
    Cidr,
    block_of,
    describe_overlaps,
    format_address,
    parse_address,
    parse_cidr,
    parse_client_address,
)

MAPPED = IPv6Network("::ffff:0:0/96")

addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
texts = (
    st.ip_addresses().map(str)
    | st.from_regex(r"[0-9a-fA-F:.]{0,20}", fullmatch=True)
    | st.from_regex(r"::[fF]{4}:[0-9]{1,3}(\.[0-9]{1,3}){3}", fullmatch=True)
    | st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){2,4}[%:/ ]?", fullmatch=True)
    | st.text(max_size=12)
)


@st.composite
def near_cidrs(draw: st.DrawFn) -> Cidr:
    """Blocks that are often equal or inside one another."""
    address = bytes([10, draw(st.sampled_from([0, 1, 128])), 0, draw(st.integers(0, 3))])
    if draw(st.booleans()):
        address = bytes(12) + address
    return block_of(address, draw(st.integers(0, len(address) * 8)))


def oracle(text: str) -> bytes | None:
    """The packed address by ipaddress; None = refused."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return None
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped.packed
    return address.packed


@settings(deadline=None)
@given(texts)
def test_parse_address__agrees_with_ipaddress(text: str) -> None:
    """The same texts are read, to the same address; zone ids are refused and mapped is IPv4."""
    try:
        assert parse_address(text) == oracle(text)
    except AddressError:
        assert oracle(text) is None


spaces = st.text(" \t", max_size=2)
zones = st.sampled_from(("", "%4", "%eth0", "%25eth0", "%25br-lan.7", "%~_"))
ports = st.one_of(st.just(""), st.just(":"), st.just(":_hidden"), st.integers(0, 65_535).map(":{}".format))


@st.composite
def as_proxies_write(draw: st.DrawFn) -> tuple[str, bytes]:
    """An address in some form that a proxy may write it in, and the address."""
    address = draw(addresses)
    text, port = str(ip_address(address)), draw(ports)
    if draw(st.booleans()):
        text = text.upper()
    if len(address) == 4:
        if draw(st.booleans()):
            text = f"::ffff:{text}"
        else:
            return f"{draw(spaces)}{text}{port}{draw(spaces)}", address
    text += draw(zones)
    if port or draw(st.booleans()):
        text = f"[{text}]{port}"
    if draw(st.booleans()):
        text = f'"{text}"'
    mapped = len(address) == 16 and IPv6Address(address) in MAPPED
    return f"{draw(spaces)}{text}{draw(spaces)}", address[12:] if mapped else address


@settings(deadline=None)
@given(as_proxies_write())
def test_parse_client_address__reads_every_form(written: tuple[str, bytes]) -> None:
    """Spaces, quotes, brackets, ports and zone ids in any combination change nothing about the address."""
    text, address = written
    assert parse_client_address(text) == address


@settings(deadline=None)
@given(texts | st.from_regex(r"[0-9a-f:.%\[\]_ ]{0,24}", fullmatch=True))
def test_parse_client_address__reads_nothing_else(text: str) -> None:
    """What is read is the address that is left when the rest is cut off; what is not is named in ASCII."""
    try:
        address = parse_client_address(text)
    except AddressError as error:
        assert ascii(text[:64]) in str(error)
        assert str(error).isascii() and str(error).isprintable()
        assert oracle(text) is None
    else:
        bare = text.strip(" ").lstrip("[").partition("%")[0].partition("]")[0]
        assert oracle(bare.partition(":")[0] if bare.count(":") == 1 else bare) == address


@settings(deadline=None)
@given(addresses, st.integers(0, 128))
def test_cidr__text_form_is_one_to_one(address: bytes, length_bits: int) -> None:
    """Every block prints as ipaddress prints it, and parses back to itself; so does every address."""
    if len(address) == 16 and IPv6Address(address) in MAPPED:
        address = address[12:]
    assert parse_address(format_address(address)) == address
    cidr = block_of(address, length_bits % (len(address) * 8 + 1))
    kind = IPv4Network if len(address) == 4 else IPv6Network
    assert str(cidr) == str(kind((cidr.network, cidr.length_bits)))
    assert parse_cidr(str(cidr)) == cidr


@settings(deadline=None)
@given(st.lists(near_cidrs(), max_size=12))
def test_describe_overlaps__names_exactly_what_adds_nothing(cidrs: list[Cidr]) -> None:
    """An entry is named just when an earlier entry is equal or any entry is wider, by comparing all pairs."""
    networks = [ip_network(str(cidr)) for cidr in cidrs]

    def adds_nothing(index: int) -> bool:
        return any(
            networks[other].version == networks[index].version
            and networks[index].subnet_of(networks[other])  # type: ignore[arg-type]
            and (networks[index] != networks[other] or other < index)
            for other in range(len(cidrs))
        )

    overlaps = describe_overlaps(cidrs)
    assert [overlap.index for overlap in overlaps] == [i for i in range(len(cidrs)) if adds_nothing(i)]
    for overlap in overlaps:
        assert overlap.entry == cidrs[overlap.index]
        assert overlap.within.covers(overlap.entry)
        assert overlap.within in cidrs
