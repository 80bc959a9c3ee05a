"""
Rules to determine the client address of a request, one per way in which proxies send it.

A rule that cannot determine the address says why; an integration with an allowlist is then refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sidecar.domain.cidr import Address, AddressError, block_of, format_address, parse_client_address
from sidecar.domain.prefix_trie import PrefixTrie

HOPS_MAX = 16
"""Elements of X-Forwarded-For looked at, from the right; longer chains of trusted proxies are refused."""

IPV6_NETWORK_BITS = 64
"""Whoever has one IPv6 address has its /64 (RFC 6177), so that is what counts as one source."""

HeaderLookUp = Callable[[str], str | None]
"""The value of a request header by lower-case name, repeats joined with ','; None = absent."""


class ClientAddressRule(Protocol):
    """One way to find the client's address; `reads_peer` = it looks at who connected to the proxy."""

    @property
    def reads_peer(self) -> bool:
        """Whether `resolve` needs its *peer*; a service may leave it empty otherwise."""

    def resolve(self, peer: str, header: HeaderLookUp) -> Address:
        """
        The client's packed address.

        Args:
            peer: the address that connected to the proxy, as text.
            header: looks up a header of the client's request.

        Raises:
            AddressError: it cannot be determined; the message names the source and the value.
        """


class PeerAddress:
    """The client is whoever connected to the proxy; headers are not looked at."""

    __slots__ = ("_place",)
    reads_peer = True

    def __init__(self, place: str = "the peer of the proxy") -> None:
        """Where the peer's address was read: *place*, for errors."""
        self._place = place

    def resolve(self, peer: str, header: HeaderLookUp) -> Address:
        """See `ClientAddressRule.resolve`."""
        return _read(self._place, peer)


class ForwardedFor:
    """
    The client is the last address in the chain of hops that no trusted proxy vouches for.

    The chain is X-Forwarded-For followed by the peer. It is walked from the right: while an address is a
    trusted proxy's, the one to its left was seen by that proxy and is looked at next. The first address
    that is not trusted is the client, and what stands left of it is the client's own claim. When all are
    trusted, the request began at the leftmost. Empty elements are no hops (RFC 9110 5.6.1).
    """

    __slots__ = ("_header", "_trusted")
    reads_peer = True

    def __init__(self, trusted: PrefixTrie, header: str = "x-forwarded-for") -> None:
        """Trust the proxies in *trusted*; *header* is a lower-case name."""
        self._trusted = trusted
        self._header = header

    def resolve(self, peer: str, header: HeaderLookUp) -> Address:
        """See `ClientAddressRule.resolve`; it cannot be known behind more than HOPS_MAX trusted hops."""
        address = _read("the peer of the proxy", peer)
        if not self._trusted.contains(address):
            return address
        chain = header(self._header)
        if chain is None:
            return address
        hops = chain.rsplit(",", HOPS_MAX)  # one more than HOPS_MAX when there are too many
        for hop in reversed(hops[-HOPS_MAX:]):
            if not hop.strip(" \t"):
                continue
            address = _read(self._header, hop)
            if not self._trusted.contains(address):
                return address
        if len(hops) > HOPS_MAX:
            raise AddressError(f"{self._header} names more than {HOPS_MAX} trusted proxies one after another")
        return address


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

    def resolve(self, peer: str, header: HeaderLookUp) -> Address:
        """See `ClientAddressRule.resolve`; it cannot be known when the header came more than once."""
        value = header(self._name)
        if value is None:
            raise AddressError(f"the request has no header {self._name}, which the proxy must set")
        return _read(self._name, value)


def _read(place: str, text: str) -> Address:
    try:
        return parse_client_address(text)
    except AddressError as error:
        raise AddressError(f"{place}: {error}") from None


def network_of(source: str) -> str:
    """
    What counts as one source: an IPv4 address, an IPv6 /64, or what is no address as it is.

    >>> network_of("2001:db8::1:2:3:4"), network_of("::ffff:192.0.2.1"), network_of("local")
    ('2001:db8::', '192.0.2.1', 'local')
    """
    try:
        address = parse_client_address(source)
    except AddressError:
        return source
    return format_address(address if len(address) == 4 else block_of(address, IPV6_NETWORK_BITS).network)
