"""
Which address a request came from: one rule per way in which proxies say so.

A rule that cannot be sure returns None, and an integration with an allowlist is then refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Protocol

from sidecar.domain.cidr import Address, AddressError, parse_address
from sidecar.domain.prefix_trie import PrefixTrie

HOPS_MAX = 16
"""Entries of X-Forwarded-For looked at, from the right; longer chains of trusted proxies are refused."""

IPV6_NETWORK_BITS = 64
"""Whoever has one IPv6 address has its /64 (RFC 6177), so that is what counts as one source."""

# '192.0.2.1:80', '[2001:db8::1]:80' and '[2001:db8::1]' (RFC 3986 3.2.2), as some proxies write hops.
_WITH_PORT = re.compile(r"(?:([0-9.]+)|\[([0-9A-Fa-f]*:[0-9A-Fa-f:.]*)\])(?::[0-9]{1,5})?")

HeaderLookUp = Callable[[str], str | None]
"""The value of a request header by lower-case name, repeats joined with ','; None = absent."""


class ClientAddressRule(Protocol):
    """One way to find the client's address; `reads_peer` = it looks at who connected to the proxy."""

    @property
    def reads_peer(self) -> bool:
        """Whether `resolve` needs its *peer*; a service may leave it empty otherwise."""

    def resolve(self, peer: str, header: HeaderLookUp) -> Address | None:
        """
        The client's packed address; None = it cannot be known.

        Args:
            peer: the address that connected to the proxy, as text.
            header: looks up a header of the client's request.
        """


class PeerAddress:
    """The client is whoever connected to the proxy; headers are not looked at."""

    __slots__ = ()
    reads_peer = True

    def resolve(self, peer: str, header: HeaderLookUp) -> Address | None:
        """See `ClientAddressRule.resolve`."""
        return _parse_hop(peer)


class ForwardedFor:
    """
    The client is the last address in the chain of hops that no trusted proxy vouches for.

    The chain is X-Forwarded-For followed by the peer. It is walked from the right: while an address is a
    trusted proxy's, the one to its left was seen by that proxy and is looked at next. The first address
    that is not trusted is the client, and what stands left of it is the client's own claim. When all are
    trusted, the request began at the leftmost.
    """

    __slots__ = ("_header", "_trusted")
    reads_peer = True

    def __init__(self, trusted: PrefixTrie, header: str = "x-forwarded-for") -> None:
        """Trust the proxies in *trusted*; *header* is a lower-case name."""
        self._trusted = trusted
        self._header = header

    def resolve(self, peer: str, header: HeaderLookUp) -> Address | None:
        """See `ClientAddressRule.resolve`; None also for a malformed hop or more than HOPS_MAX."""
        address = _parse_hop(peer)
        if address is None or not self._trusted.contains(address):
            return address
        chain = header(self._header)
        if chain is None:
            return address
        hops = chain.rsplit(",", HOPS_MAX)  # one more than HOPS_MAX when there are too many
        for hop in reversed(hops[-HOPS_MAX:]):
            address = _parse_hop(hop.strip(" \t"))
            if address is None or not self._trusted.contains(address):
                return address
        return address if len(hops) <= HOPS_MAX else None


class ClientHeader:
    """
    The client is what one header says, which the proxy sets on every request and never passes on.

    The peer is not looked at: use this rule only where the proxy overwrites the client's own copy.
    """

    __slots__ = ("_name",)
    reads_peer = False

    def __init__(self, name: str) -> None:
        """Read header *name*, in lower case."""
        self._name = name

    def resolve(self, peer: str, header: HeaderLookUp) -> Address | None:
        """See `ClientAddressRule.resolve`; None also when the header came more than once."""
        value = header(self._name)
        return None if value is None else _parse_hop(value.strip(" \t"))


def _parse_hop(text: str) -> Address | None:
    """The address in *text*, which may carry a port; None = malformed."""
    if text.count(":") == 1 or text.startswith("["):
        hop = _WITH_PORT.fullmatch(text)
        if hop is None:
            return None
        text = hop[1] or hop[2]
    try:
        return parse_address(text)
    except AddressError:
        return None


def network_of(source: str) -> str:
    """
    What counts as one source: an IPv4 address, an IPv6 /64, or what is no address as it is.

    >>> network_of("2001:db8::1:2:3:4"), network_of("::ffff:192.0.2.1"), network_of("local")
    ('2001:db8::', '192.0.2.1', 'local')
    """
    try:
        address = ip_address(source.partition("%")[0])
    except ValueError:
        return source
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> IPV6_NETWORK_BITS << IPV6_NETWORK_BITS))
    return str(address)
