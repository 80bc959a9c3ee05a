"""Addresses and CIDR blocks: what is read, what is refused and with which words."""

from __future__ import annotations

import pytest

from sidecar.domain.cidr import (
    AddressError,
    Cidr,
    CidrError,
    Overlap,
    block_of,
    describe_overlaps,
    embedded_ipv4,
    format_address,
    is_loopback,
    parse_address,
    parse_cidr,
)


@pytest.mark.parametrize(
    ("text", "packed"),
    [
        ("0.0.0.0", bytes(4)),
        ("203.0.113.7", bytes([203, 0, 113, 7])),
        ("::", bytes(16)),
        ("2001:DB8::1", bytes.fromhex("20010db8000000000000000000000001")),
        ("::ffff:203.0.113.7", bytes([203, 0, 113, 7])),
        ("::FFFF:cb00:7107", bytes([203, 0, 113, 7])),
        ("::203.0.113.7", bytes(12) + bytes([203, 0, 113, 7])),
    ],
)
def test_parse_address__packs(text: str, packed: bytes) -> None:
    """Dotted quads and every RFC 4291 form are packed; mapped IPv6 is IPv4, IPv4-compatible is not."""
    assert parse_address(text) == packed


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is empty"),
        (" 10.0.0.1", "remove the surrounding white space"),
        ("10.0.0.1\n", "white space"),
        ("10.0.0.01", "leading zero"),
        ("::ffff:10.0.0.01", "not an IP address"),
        ("10.0.0.1:80", "leave out port, brackets and zone id; write 10.0.0.1$"),
        ("[::1]:80", "leave out port, brackets and zone id; write ::1$"),
        ("[::1]", "write ::1$"),
        ("fe80::1%eth0", "write fe80::1$"),
        ("[fe80::1%25eth0]:80", "write fe80::1$"),
        ("10.0.0", "not an IP address"),
        ("10.0.0.256", "not an IP address"),
        ("0x0a.0.0.1", "not an IP address"),
        ("167772161", "not an IP address"),
        ("2001:db8", "not an IP address"),
        ("1::2::3", "not an IP address"),
        ("12345::", "not an IP address"),
        ("localhost", "not an IP address"),
        ("10.0.0.\N{ARABIC-INDIC DIGIT ONE}", "not an IP address"),
        ("10.0.0.1\0", "not an IP address"),
        ("::1\ud800", "not an IP address"),
    ],
)
def test_parse_address__refuses(text: str, fault: str) -> None:
    """Whatever is no plain address is refused, and a usual mistake is named."""
    with pytest.raises(AddressError, match=fault):
        parse_address(text)


def test_parse_address__quotes_a_bounded_ascii_part() -> None:
    """The message of a refusal holds at most 64 characters of the text, and no raw control character."""
    with pytest.raises(AddressError) as caught:
        parse_address("\r\n\N{SNOWMAN}" + "9" * 10_000)
    message = str(caught.value)
    assert len(message) < 150
    assert message.isascii()
    assert message.isprintable()


def test_format_address__is_canonical() -> None:
    """RFC 5952: lower case, the longest run of zeros shortened."""
    assert format_address(parse_address("2001:DB8:0:0:1:0:0:1")) == "2001:db8::1:0:0:1"
    assert format_address(parse_address("10.0.0.1")) == "10.0.0.1"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("10.1.2.3/32", "10.1.2.3/32"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("::/0", "::/0"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0.0.0.0/96", "0.0.0.0/0"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:a00:0/104", "10.0.0.0/8"),
        ("2002:a00::/24", "2002:a00::/24"),
        ("2002:c000:204::/48", "2002:c000:204::/48"),
        ("::ffff:10.1.2.3", "10.1.2.3/32"),
        ("::fffe:0:0/95", "::fffe:0:0/95"),
    ],
)
def test_parse_cidr__reads(text: str, canonical: str) -> None:
    """A block, or a bare address as the block of itself; mapped is IPv4. The text form parses back."""
    cidr = parse_cidr(text)
    assert str(cidr) == canonical
    assert parse_cidr(canonical) == cidr


def test_parse_cidr__names_the_network_meant() -> None:
    """Host bits set is an error that offers the two blocks probably meant."""
    with pytest.raises(CidrError) as caught:
        parse_cidr("10.0.0.5/8")
    expected = "10.0.0.5/8 has host bits set; did you mean 10.0.0.0/8 or 10.0.0.5/32?"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is empty"),
        ("/8", "is empty"),
        ("10.0.0.0/", "'10.0.0.0/' is not a CIDR block: the length after the slash is ''"),
        ("10.0.0.0/", "a whole number from 0 to 32"),
        (
            "fe80::/64%eth0",
            "the length after the slash is '64%eth0'; it must be a whole number from 0 to 128",
        ),
        ("fe80::1%eth0/64", "'fe80::1%eth0/64' is not a CIDR block.*write fe80::1$"),
        ("[2001:db8::]/32", "'.2001:db8::./32' is not a CIDR block.*write 2001:db8::$"),
        ("10.0.0.1:80/32", "write 10.0.0.1$"),
        ("10.0.0.0/33", "a whole number from 0 to 32"),
        ("10.0.0.0/-1", "a whole number from 0 to 32"),
        ("10.0.0.0/08", "a whole number from 0 to 32"),
        ("10.0.0.0/ 8", "a whole number from 0 to 32"),
        ("10.0.0.0/8/8", "a whole number from 0 to 32"),
        ("10.0.0.0/" + "9" * 5_000, "a whole number from 0 to 32"),
        ("10.0.0.0/\N{ARABIC-INDIC DIGIT EIGHT}", "a whole number from 0 to 32"),
        ("10.0.0.0/255.0.0.0", "not a netmask"),
        ("2001:db8::/129", "a whole number from 0 to 128"),
        ("2001:db8::1/64", "did you mean 2001:db8::/64 or 2001:db8::1/128"),
        ("::ffff:10.0.0.5/104", "^'::ffff:10.0.0.5/104' has host bits set; .* 10.0.0.0/8 or 10.0.0.5/32"),
        (
            "::ffff:10.0.0.0/96",
            "^'::ffff:10.0.0.0/96' has host bits set; .* 0.0.0.0/0, every IPv4 address, or 10.0.0.0/32",
        ),
        ("::FFFF:a00:0/96", "^'::FFFF:a00:0/96' has host bits set; did you mean 0.0.0.0/0"),
        ("::ffff:10.0.0.0/8", "^'::ffff:10.0.0.0/8' is wider than IPv4.*96..128.*did you mean 10.0.0.0/8?"),
        ("::ffff:10.0.0.0/95", "^'::ffff:10.0.0.0/95' is wider than IPv4.*96 more than the IPv4 block$"),
        ("2002:a00:1::/32", "2002:a00:1::/32 has host bits set; .* 2002:a00::/32 or 2002:a00:1::/128"),
        ("10.0.0/8", "not a CIDR block"),
        ("internal", "not a CIDR block"),
    ],
)
def test_parse_cidr__refuses(text: str, fault: str) -> None:
    """Whatever is no block is refused, with the remedy."""
    with pytest.raises(CidrError, match=fault):
        parse_cidr(text)


@pytest.mark.parametrize(
    ("network", "length_bits", "fault"),
    [
        (bytes(5), 8, "must have 4 or 16"),
        (bytes(4), 33, "must be 0 to 32"),
        (bytes(16), -1, "must be 0 to 128"),
        (bytes([10, 0, 0, 1]), 8, "host bits"),
        (bytes(10) + b"\xff\xff" + bytes(4), 96, "IPv4-mapped"),
    ],
)
def test_cidr__cannot_be_built_wrong(network: bytes, length_bits: int, fault: str) -> None:
    """The value itself refuses what is no block, so equal blocks are equal values."""
    with pytest.raises(CidrError, match=fault):
        Cidr(network, length_bits)


def test_cidr__contains_within_its_family_only() -> None:
    """A block holds its first and last address, not their neighbors, and nothing of the other family."""
    block = parse_cidr("10.0.0.0/8")
    assert block.contains(parse_address("10.0.0.0"))
    assert block.contains(parse_address("10.255.255.255"))
    assert not block.contains(parse_address("9.255.255.255"))
    assert not block.contains(parse_address("11.0.0.0"))
    assert not parse_cidr("::/0").contains(parse_address("10.0.0.0"))
    assert not parse_cidr("0.0.0.0/0").contains(parse_address("::"))


def test_cidr__covers() -> None:
    """A block covers itself and narrower blocks inside, never a wider one or the other family."""
    wide, narrow = parse_cidr("10.0.0.0/8"), parse_cidr("10.1.0.0/16")
    assert wide.covers(wide)
    assert wide.covers(narrow)
    assert not narrow.covers(wide)
    assert not parse_cidr("11.0.0.0/8").covers(narrow)
    assert not parse_cidr("::/0").covers(narrow)


def test_block_of__clears_host_bits() -> None:
    """The block around an address, at both ends of the range of lengths."""
    address = parse_address("10.1.2.3")
    assert [str(block_of(address, bits)) for bits in (0, 15, 32)] == [
        "0.0.0.0/0",
        "10.0.0.0/15",
        "10.1.2.3/32",
    ]


def test_describe_overlaps__names_duplicates_and_covered_entries() -> None:
    """Each entry that adds nothing is named once, in list order, with the widest entry that covers it."""
    texts = [
        "10.1.2.0/24",
        "10.0.0.0/8",
        "192.0.2.1",
        "10.1.0.0/16",
        "10.0.0.0/8",
        "::/0",
        "192.0.2.1/32",
        "::1",
    ]
    cidrs = [parse_cidr(text) for text in texts]
    wide, host, all_ipv6 = cidrs[1], cidrs[2], cidrs[5]
    overlaps = describe_overlaps(cidrs)
    assert overlaps == (
        Overlap(0, cidrs[0], wide),
        Overlap(3, cidrs[3], wide),
        Overlap(4, wide, wide),
        Overlap(6, host, host),
        Overlap(7, cidrs[7], all_ipv6),
    )
    assert str(overlaps[0]) == "10.1.2.0/24 is already covered by 10.0.0.0/8"
    assert str(overlaps[2]) == "10.0.0.0/8 is listed more than once"


def test_describe_overlaps__is_empty_for_disjoint_blocks() -> None:
    """Neighbors, and 0.0.0.0/0 beside IPv6, do not overlap."""
    cidrs = [parse_cidr(text) for text in ("10.0.0.0/9", "10.128.0.0/9", "2001:db8::/32", "192.0.2.0/24")]
    assert describe_overlaps(cidrs) == ()
    assert describe_overlaps([parse_cidr("0.0.0.0/0"), parse_cidr("::/0")]) == ()
    assert describe_overlaps([]) == ()


@pytest.mark.parametrize(
    ("text", "ipv4"),
    [
        ("2002:a00::/24", "10.0.0.0/8"),
        ("2002:c000:204::/48", "192.0.2.4/32"),
        ("2002:c000:204:1::/64", "192.0.2.4/32"),
        ("64:ff9b::192.0.2.0/120", "192.0.2.0/24"),
        ("::192.0.2.4", "192.0.2.4/32"),
        ("2002::/16", None),
        ("2000::/3", None),
        ("::1", None),
        ("::/0", None),
        ("2001:db8::/32", None),
        ("10.0.0.0/8", None),
    ],
)
def test_embedded_ipv4__is_found(text: str, ipv4: str | None) -> None:
    """6to4, NAT64 and IPv4-compatible blocks are IPv6, and name the IPv4 block that was perhaps meant."""
    found = embedded_ipv4(parse_cidr(text))
    assert (None if found is None else str(found)) == ipv4


def test_is_loopback__is_this_machine() -> None:
    """127.0.0.0/8 and ::1, also written as IPv4-mapped."""
    for text in ("127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"):
        assert is_loopback(parse_address(text))
    for text in ("128.0.0.1", "0.0.0.0", "::", "::2", "::127.0.0.1"):
        assert not is_loopback(parse_address(text))
