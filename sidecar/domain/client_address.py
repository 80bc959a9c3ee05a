"""
Rules that determine the client address of a request, one for each way in which proxies send it.

A request whose address cannot be determined is denied if the integration has an allowlist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from sidecar.domain.cidr import Address, AddressError, block_of, format_address, parse_client_address
from sidecar.domain.prefix_trie import PrefixTrie

HOPS_MAX: Final = 16
"""Elements of X-Forwarded-For that are read, from the right; longer chains of trusted proxies are errors."""

IPV6_NETWORK_BITS: Final = 64
"""An IPv6 site has at least a /64 (RFC 6177), so a /64 counts as one source."""

HeaderLookUp = Callable[[str], str | None]
"""The value of a request header by lower-case name, repeats joined with ','; None = absent."""


class ClientAddressRule(Protocol):
    """One way to determine the client's address."""

    @property
    def reads_peer(self) -> bool:
        """Whether `resolve` reads its *peer*; if not, a service may pass ''."""

    def resolve(self, peer: str, header: HeaderLookUp) -> Address:
        """
        Return the client's packed address.

        Args:
            peer: the address that connected to the proxy, as text.
            header: looks up a header of the client's request.

        Raises:
            AddressError: the address cannot be determined; the message names the source and the value.
        """


class PeerAddress:
    """The client is the proxy's peer; headers are ignored."""

    __slots__ = ("_place",)
    reads_peer = True

    def __init__(self, place: str = "the peer of the proxy") -> None:
        """Name the source of the address as *place* in errors."""
        self._place = place

    def resolve(self, peer: str, header: HeaderLookUp) -> Address:
        """See `ClientAddressRule.resolve`."""
        return _read(self._place, peer)


class ForwardedFor:
    """
    The client is the rightmost address in the chain of hops that is not a trusted proxy.

    The chain is X-Forwarded-For followed by the peer, read from the right. A trusted proxy appended the
    address to its left, so that address is read next. The first untrusted address is the client; the
    elements left of it are the client's own claim. If all are trusted, the leftmost is the client. Empty
    elements are ignored (RFC 9110 5.6.1).
    """

    __slots__ = ("_header", "_trusted")
    reads_peer = True

    def __init__(self, trusted: PrefixTrie, header: str = "x-forwarded-for") -> None:
        """Trust the proxies in *trusted*; *header* is a lower-case name."""
        self._trusted = trusted
        self._header = header

    def resolve(self, peer: str, header: HeaderLookUp) -> Address:
        """See `ClientAddressRule.resolve`; more than HOPS_MAX trusted hops are an error."""
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
            raise AddressError(f"{self._header} names more than {HOPS_MAX} trusted proxies in a row")
        return address


class ClientHeader:
    """
    The client is the value of a header that the proxy sets on every request.

    The peer is ignored: use this rule only if the proxy overwrites a header of the client.
    """

    __slots__ = ("_name",)
    reads_peer = False

    def __init__(self, name: str) -> None:
        """Read header *name*, in lower case."""
        self._name = name

    def resolve(self, peer: str, header: HeaderLookUp) -> Address:
        """See `ClientAddressRule.resolve`; a repeated header is an error."""
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
    Return the network that counts as one source: an IPv4 address, an IPv6 /64, or any other text unchanged.

    >>> network_of("2001:db8::1:2:3:4"), network_of("::ffff:192.0.2.1"), network_of("local")
    ('2001:db8::', '192.0.2.1', 'local')
    """
    try:
        address = parse_client_address(source)
    except AddressError:
        return source
    return format_address(address if len(address) == 4 else block_of(address, IPV6_NETWORK_BITS).network)
