"""
IP addresses and CIDR blocks as small values.

An address is its packed bytes, so that parsing and comparing are one C call each. An IPv4-mapped IPv6
address (RFC 4291 2.5.5.2, `::ffff:a.b.c.d`) is converted to IPv4, and so is a block of these addresses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, inet_pton
from typing import Final, TypeAlias

_pack: Final = inet_pton
_IPV4_FAMILY: Final = AF_INET
_IPV6_FAMILY: Final = AF_INET6

Address: TypeAlias = bytes
"""A packed address in network byte order: 4 bytes = IPv4, 16 bytes = IPv6 (never IPv4-mapped)."""

_MAPPED_PREFIX: Final = bytes(10) + b"\xff\xff"
_MAPPED_BITS: Final = 96
_QUOTED_CHARS_MAX: Final = 64  # of a rejected text in error messages
_LENGTH: Final = re.compile(r"0|[1-9][0-9]{0,2}")
_LEADING_ZERO: Final = re.compile(r"(?:^|\.)0[0-9]")
_ZONE: Final = r"%[0-9A-Za-z._~-]{1,64}"
# What proxies add to an address (RFC 7239 6, RFC 3986 3.2.2, RFC 4007 11, RFC 6874): a port, also an
# obfuscated one, brackets, and a zone id, which names an interface of one machine.
_PORT: Final = r":(?:[0-9]{0,5}|_[0-9A-Za-z._-]{1,64})"
_IPV6: Final = r"[0-9A-Fa-f]*:[0-9A-Fa-f:.]*"
_PROXY_FORM: Final = re.compile(rf"([0-9.]+){_PORT}|\[({_IPV6})(?:{_ZONE})?\](?:{_PORT})?|({_IPV6}){_ZONE}")


class AddressError(ValueError):
    """A text is not an IP address; the message says why."""


class CidrError(ValueError):
    """A text is not a CIDR block; the message says why and, if possible, what was meant."""


def parse_address(text: str) -> Address:
    """
    Pack one IP address, in the form of RFC 4291 2.2 or a dotted quad.

    >>> parse_address("10.1.2.3") == parse_address("::ffff:10.1.2.3") == bytes([10, 1, 2, 3])
    True

    Raises:
        AddressError: any other text, including ports, brackets, zone ids and octets with leading zeros.
    """
    try:
        if ":" not in text:
            return _pack(_IPV4_FAMILY, text)
        packed = _pack(_IPV6_FAMILY, text)
    except (OSError, ValueError):  # ValueError: NUL or a lone surrogate
        raise AddressError(f"{_quoted(text)} is not an IP address{_address_fault(text)}") from None
    return packed[12:] if packed.startswith(_MAPPED_PREFIX) else packed


def parse_client_address(text: str) -> Address:
    """
    Pack an address in any form that proxies write: with surrounding spaces, a port, brackets, a zone id or
    the quotes of RFC 7239. Port and zone id are dropped.

    >>> parse_client_address("192.0.2.1:443") == parse_client_address(" 192.0.2.1") == bytes([192, 0, 2, 1])
    True
    >>> format_address(parse_client_address('"[fe80::1%25eth0]:80"'))
    'fe80::1'

    Raises:
        AddressError: any other text, such as 'unknown'; the message names the text and the valid forms.
    """
    bare = text.strip(" \t")
    if bare[:1] == '"' == bare[-1:]:
        bare = bare[1:-1]
    if "%" in bare or bare[:1] == "[" or bare.count(":") == 1:
        match = _PROXY_FORM.fullmatch(bare)
        if match is not None:
            bare = match[1] or match[2] or match[3]
    try:
        return parse_address(bare)
    except AddressError:
        hint = "; allowed are IPv4 and IPv6 addresses, such as 192.0.2.1, 192.0.2.1:443 or [2001:db8::1]:443"
        if not bare:
            hint = ": the text is empty"
        elif bare == "unknown" or bare[0] == "_":
            hint = ": the proxy does not know the address or hides it (RFC 7239 6)"
        raise AddressError(f"{_quoted(text)} is not an IP address{hint}") from None


def is_loopback(address: Address) -> bool:
    """Whether *address* is a loopback address: 127.0.0.0/8 or ::1."""
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"


def format_address(address: Address) -> str:
    """
    Return the canonical text of *address* (RFC 5952).

    >>> format_address(parse_address("2001:DB8:0:0::0001"))
    '2001:db8::1'
    """
    return str(ip_address(address))


@dataclass(frozen=True, slots=True)
class Cidr:
    """
    A block of addresses: all that share the first `length_bits` bits of `network`.

    Raises:
        CidrError: on construction, if the length is out of range, host bits are set or the network is
            IPv4-mapped.
    """

    network: Address
    length_bits: int

    def __post_init__(self) -> None:
        """Reject anything but the canonical form, so that equal blocks are equal values."""
        width_bits = len(self.network) * 8
        if width_bits not in (32, 128):
            raise CidrError(f"address has {len(self.network)} bytes; it must have 4 or 16")
        if not 0 <= self.length_bits <= width_bits:
            raise CidrError(f"prefix length is {self.length_bits}; it must be 0 to {width_bits}")
        if self.network.startswith(_MAPPED_PREFIX):
            raise CidrError(f"{format_address(self.network)} is IPv4-mapped: use the IPv4 block")
        if int.from_bytes(self.network) & _host_mask(width_bits, self.length_bits):
            written = f"{format_address(self.network)}/{self.length_bits}"
            raise CidrError(_host_bits_fault(written, self.network, self.length_bits))

    @property
    def width_bits(self) -> int:
        """32 for IPv4, 128 for IPv6."""
        return len(self.network) * 8

    def covers(self, other: Cidr) -> bool:
        """Whether every address of *other* is in this block; true if both are equal."""
        return self.length_bits <= other.length_bits and self.contains(other.network)

    def contains(self, address: Address) -> bool:
        """Whether *address* is in this block; false for another address family."""
        if len(address) != len(self.network):
            return False
        differing = int.from_bytes(address) ^ int.from_bytes(self.network)
        return differing >> (self.width_bits - self.length_bits) == 0

    def __str__(self) -> str:
        """The canonical text, always with its length: '10.0.0.0/8'."""
        return f"{format_address(self.network)}/{self.length_bits}"


def block_of(address: Address, length_bits: int) -> Cidr:
    """Return the block of *length_bits* that contains *address*."""
    width_bits = len(address) * 8
    number = int.from_bytes(address) & ~_host_mask(width_bits, length_bits)
    return Cidr(number.to_bytes(len(address)), length_bits)


def parse_cidr(text: str) -> Cidr:
    """
    Parse 'address/length' or a bare address, which is a block of one address.

    An IPv4-mapped block of 96 bits or more becomes the IPv4 block. A shorter IPv6 block never matches IPv4
    clients: '::/0' is every IPv6 client and no IPv4 client.

    >>> str(parse_cidr("::ffff:10.0.0.0/104")), str(parse_cidr("2001:db8::1"))
    ('10.0.0.0/8', '2001:db8::1/128')

    Raises:
        CidrError: *text* is not a block; for host bits the message suggests the two likely blocks.
    """
    address_text, slash, length_text = text.partition("/")
    try:
        address = parse_address(address_text)
    except AddressError as error:
        raise CidrError(f"{_quoted(text)} is not a CIDR block: {error}") from None
    if not slash:
        return Cidr(address, len(address) * 8)
    length_bits = _parse_length(text, length_text, 128 if ":" in address_text else 32)
    if len(address) == 4 and ":" in address_text:
        length_bits = _unmapped_length(text, address, length_bits)
    return Cidr(address, length_bits)


def _parse_length(text: str, length_text: str, width_bits: int) -> int:
    if not _LENGTH.fullmatch(length_text) or int(length_text) > width_bits:
        hint = "; write a prefix length, not a netmask" if "." in length_text else ""
        raise CidrError(
            f"{_quoted(text)} is not a CIDR block: the length after the slash is {_quoted(length_text)}; "
            f"it must be a whole number from 0 to {width_bits}{hint}"
        )
    return int(length_text)


def _unmapped_length(text: str, address: Address, length_bits: int) -> int:
    """Return the IPv4 length of the IPv4-mapped block in *text*; errors quote *text*."""
    ipv4_bits = length_bits - _MAPPED_BITS
    if ipv4_bits < 0:
        hint = ""
        if length_bits <= 32:
            meant = block_of(address, length_bits)
            hint = f"; did you mean {meant}?"
        raise CidrError(
            f"{_quoted(text)} is wider than IPv4: the length of an IPv4-mapped block is {_MAPPED_BITS}..128, "
            f"{_MAPPED_BITS} more than the IPv4 block{hint}"
        )
    if int.from_bytes(address) & _host_mask(32, ipv4_bits):
        raise CidrError(_host_bits_fault(_quoted(text), address, ipv4_bits))
    return ipv4_bits


def embedded_ipv4(cidr: Cidr) -> Cidr | None:
    """
    Return the IPv4 block that the IPv6 block *cidr* embeds: 6to4 (RFC 3056), NAT64 (RFC 6052),
    IPv4-compatible.

    >>> str(embedded_ipv4(parse_cidr("2002:a00::/24")))
    '10.0.0.0/8'
    """
    for prefix in _EMBEDDING_PREFIXES:
        first = prefix.length_bits
        address = cidr.network[first // 8 : first // 8 + 4]
        if prefix.covers(cidr) and first < cidr.length_bits and address[0]:  # not ::1
            return block_of(address, min(32, cidr.length_bits - first))
    return None


def describe_embedded(ipv4: Cidr) -> str:
    """Return the predicate of a warning about an entry that embeds *ipv4*."""
    return f"admits IPv6 clients whose addresses embed {ipv4}; IPv4 clients need the entry {ipv4}"


@dataclass(frozen=True, slots=True)
class Overlap:
    """A redundant entry of a list: entry number `index` is covered by `within`."""

    index: int
    entry: Cidr
    within: Cidr

    def __str__(self) -> str:
        """The text of a warning."""
        if self.entry == self.within:
            return f"{self.entry} is listed more than once"
        return f"{self.entry} is already covered by {self.within}"


def describe_overlaps(cidrs: Sequence[Cidr]) -> tuple[Overlap, ...]:
    """
    Return the redundant entries of a list, in list order; O(n log n).

    The first of equal entries is not redundant. A covered entry names the widest entry that covers it.
    """
    overlaps = []
    widest: Cidr | None = None
    latest: Cidr | None = None
    # Sorted so that a block comes before all that it covers, and equal blocks in list order.
    for index, entry in sorted(enumerate(cidrs), key=lambda item: (*_sort_key(item[1]), item[0])):
        if entry == latest:
            overlaps.append(Overlap(index, entry, entry))
        elif widest is not None and widest.covers(entry):
            overlaps.append(Overlap(index, entry, widest))
        else:
            widest = entry
        latest = entry
    return tuple(sorted(overlaps, key=lambda overlap: overlap.index))


def _sort_key(cidr: Cidr) -> tuple[int, bytes, int]:
    return len(cidr.network), cidr.network, cidr.length_bits


def _host_mask(width_bits: int, length_bits: int) -> int:
    return (1 << (width_bits - length_bits)) - 1


def _host_bits_fault(written: str, address: Address, length_bits: int) -> str:
    host, meant = Cidr(address, len(address) * 8), block_of(address, length_bits)
    every = f", every IPv{4 if len(address) == 4 else 6} address," if length_bits == 0 else ""
    return f"{written} has host bits set; did you mean {meant}{every} or {host}?"


def _address_fault(text: str) -> str:
    """Name a common mistake in *text* and what to write instead; '' = none is recognized."""
    head = text[:_QUOTED_CHARS_MAX]
    if not head:
        return ": the text is empty"
    bare = head.strip()
    if head != bare:
        return ": remove the surrounding white space"
    if _LEADING_ZERO.search(head):
        return ": an octet has a leading zero, which some programs read as octal; leave it out"
    match = _PROXY_FORM.fullmatch(head)
    if match is None:
        return ""
    return f": leave out port, brackets and zone id; write {match[1] or match[2] or match[3]}"


def _quoted(text: str) -> str:
    head = ascii(text[:_QUOTED_CHARS_MAX])
    return head if len(text) <= _QUOTED_CHARS_MAX else f"{head}..."


_EMBEDDING_PREFIXES: Final = tuple(map(parse_cidr, ("2002::/16", "64:ff9b::/96", "::/96")))
