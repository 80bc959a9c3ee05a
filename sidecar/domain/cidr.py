"""
IP addresses and CIDR blocks as small values.

An address is its packed bytes, so that parsing it is one C call and comparing it another. There is one
spelling of an IPv4 client: an IPv4-mapped IPv6 address (RFC 4291 2.5.5.2, `::ffff:a.b.c.d`) is IPv4 from
here on, and so is a block of such addresses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, inet_pton
from typing import TypeAlias

Address: TypeAlias = bytes
"""A packed address in network byte order: 4 bytes = IPv4, 16 bytes = IPv6 (never IPv4-mapped)."""

_MAPPED_PREFIX = bytes(10) + b"\xff\xff"
_MAPPED_BITS = 96
_QUOTED_CHARS_MAX = 64  # errors quote at most this much of what they refuse
_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}")
_LEADING_ZERO = re.compile(r"(?:^|\.)0[0-9]")
_ZONE = r"%[0-9A-Za-z._~-]{1,64}"
# What is more than an address in what proxies write (RFC 7239 6, RFC 3986 3.2.2, RFC 4007 11, RFC 6874): a
# port, also a hidden one, brackets, and a zone id, which names an interface of one machine.
_PORT = r":(?:[0-9]{0,5}|_[0-9A-Za-z._-]{1,64})"
_IPV6 = r"[0-9A-Fa-f]*:[0-9A-Fa-f:.]*"
_AS_PROXIES_WRITE = re.compile(rf"([0-9.]+){_PORT}|\[({_IPV6})(?:{_ZONE})?\](?:{_PORT})?|({_IPV6}){_ZONE}")


class AddressError(ValueError):
    """A text is no IP address; the message says why."""


class CidrError(ValueError):
    """A text is no CIDR block; the message says why and, where it can, what was meant."""


def parse_address(text: str) -> Address:
    """
    Pack one IP address, as RFC 4291 2.2 and dotted quads write it.

    >>> parse_address("10.1.2.3") == parse_address("::ffff:10.1.2.3") == bytes([10, 1, 2, 3])
    True

    Raises:
        AddressError: anything else, also ports, brackets, zone ids and octets with leading zeros.
    """
    try:
        if ":" not in text:
            return inet_pton(AF_INET, text)
        packed = inet_pton(AF_INET6, text)
    except (OSError, ValueError):  # ValueError: NUL or a lone surrogate inside
        raise AddressError(f"{_quoted(text)} is not an IP address{_address_fault(text)}") from None
    return packed[12:] if packed.startswith(_MAPPED_PREFIX) else packed


def parse_client_address(text: str) -> Address:
    """
    Pack an address in any form in which proxies write it: with spaces around it, a port, brackets, a zone id,
    or in the quotes of RFC 7239. Port and zone id are dropped.

    >>> parse_client_address("192.0.2.1:443") == parse_client_address(" 192.0.2.1") == bytes([192, 0, 2, 1])
    True
    >>> format_address(parse_client_address('"[fe80::1%25eth0]:80"'))
    'fe80::1'

    Raises:
        AddressError: anything else, such as 'unknown'; the message names the text and the forms.
    """
    bare = text.strip(" \t")
    if bare[:1] == '"' == bare[-1:]:
        bare = bare[1:-1]
    if "%" in bare or bare[:1] == "[" or bare.count(":") == 1:
        written = _AS_PROXIES_WRITE.fullmatch(bare)
        if written is not None:
            bare = written[1] or written[2] or written[3]
    try:
        return parse_address(bare)
    except AddressError:
        hint = "; allowed are IPv4 and IPv6 addresses, such as 192.0.2.1, 192.0.2.1:443 or [2001:db8::1]:443"
        if not bare:
            hint = ": it is empty"
        elif bare == "unknown" or bare[0] == "_":
            hint = ": the proxy that wrote it does not know or does not tell the address"
        raise AddressError(f"{_quoted(text)} is not an IP address{hint}") from None


def is_loopback(address: Address) -> bool:
    """Whether *address* is of this machine alone: 127.0.0.0/8 or ::1."""
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\1"


def format_address(address: Address) -> str:
    """
    The canonical text of *address* (RFC 5952).

    >>> format_address(parse_address("2001:DB8:0:0::0001"))
    '2001:db8::1'
    """
    return str(ip_address(address))


@dataclass(frozen=True, slots=True)
class Cidr:
    """
    A block of addresses: all that share the first `length_bits` bits of `network`.

    Raises:
        CidrError: on construction, when the length does not fit, host bits are set or it is IPv4-mapped.
    """

    network: Address
    length_bits: int

    def __post_init__(self) -> None:
        """Refuse what is no block, so that equal blocks are always equal values."""
        width_bits = len(self.network) * 8
        if width_bits not in (32, 128):
            raise CidrError(f"an address is 4 or 16 bytes, not {len(self.network)}")
        if not 0 <= self.length_bits <= width_bits:
            raise CidrError(f"prefix length {self.length_bits} is not within 0..{width_bits}")
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
        """True when every address of *other* is in this block (also when both are equal)."""
        return self.length_bits <= other.length_bits and self.contains(other.network)

    def contains(self, address: Address) -> bool:
        """True when *address* is in this block; never across families."""
        if len(address) != len(self.network):
            return False
        differing = int.from_bytes(address) ^ int.from_bytes(self.network)
        return differing >> (self.width_bits - self.length_bits) == 0

    def __str__(self) -> str:
        """The canonical text, always with its length: '10.0.0.0/8'."""
        return f"{format_address(self.network)}/{self.length_bits}"


def block_of(address: Address, length_bits: int) -> Cidr:
    """The block of *length_bits* that *address* is in."""
    width_bits = len(address) * 8
    number = int.from_bytes(address) & ~_host_mask(width_bits, length_bits)
    return Cidr(number.to_bytes(len(address)), length_bits)


def parse_cidr(text: str) -> Cidr:
    """
    Read 'address/length', or a bare address, which means that one address.

    An IPv4-mapped block of 96 bits or more is the IPv4 block. A shorter IPv6 block never matches IPv4
    clients, so '::/0' is every IPv6 client and no IPv4 one.

    >>> str(parse_cidr("::ffff:10.0.0.0/104")), str(parse_cidr("2001:db8::1"))
    ('10.0.0.0/8', '2001:db8::1/128')

    Raises:
        CidrError: the text is no block; host bits that are set get the two blocks probably meant.
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
    """The IPv4 length of a block that *text* writes as IPv4-mapped, where it is one; errors name *text*."""
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
    The IPv4 block that the IPv6 block *cidr* embeds: as 6to4 (RFC 3056), NAT64 (RFC 6052) or IPv4-compatible.

    >>> str(embedded_ipv4(parse_cidr("2002:a00::/24")))
    '10.0.0.0/8'
    """
    for prefix in _EMBEDDING:
        first = prefix.length_bits
        address = cidr.network[first // 8 : first // 8 + 4]
        if prefix.covers(cidr) and first < cidr.length_bits and address[0]:  # not ::1
            return block_of(address, min(32, cidr.length_bits - first))
    return None


def describe_embedded(ipv4: Cidr) -> str:
    """What to know of an entry that embeds *ipv4*: the rest of a sentence that begins with the entry."""
    return f"lets IPv6 clients in whose addresses embed {ipv4}; IPv4 clients need the entry {ipv4}"


@dataclass(frozen=True, slots=True)
class Overlap:
    """One entry of a list that adds nothing: entry number `index` is already within `within`."""

    index: int
    entry: Cidr
    within: Cidr

    def __str__(self) -> str:
        """A sentence for a warning."""
        if self.entry == self.within:
            return f"{self.entry} is listed more than once"
        return f"{self.entry} is already covered by {self.within}"


def describe_overlaps(cidrs: Sequence[Cidr]) -> tuple[Overlap, ...]:
    """
    The entries that could be left out without changing the set, in list order; O(n log n).

    Of equal entries the first is kept. A covered entry names the widest entry that covers it.
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
    """What is wrong with *text*, when it is one of the usual mistakes, and what to write; else nothing."""
    head = text[:_QUOTED_CHARS_MAX]
    if not head:
        return ": it is empty"
    bare = head.strip()
    if head != bare:
        return ": remove the white space around it"
    if _LEADING_ZERO.search(head):
        return ": an octet has a leading zero, which some programs read as octal; leave it out"
    written = _AS_PROXIES_WRITE.fullmatch(head)
    if written is None:
        return ""
    return f": leave out port, brackets and zone id; write {written[1] or written[2] or written[3]}"


def _quoted(text: str) -> str:
    head = ascii(text[:_QUOTED_CHARS_MAX])
    return head if len(text) <= _QUOTED_CHARS_MAX else f"{head}..."


_EMBEDDING = tuple(map(parse_cidr, ("2002::/16", "64:ff9b::/96", "::/96")))
