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
    """An entry is named just when an earlier entry is equal or any entry is wider, as all pairs tell."""
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
