"""
Forward auth over HTTP/1.1, for nginx, Caddy, HAProxy and Traefik: the same decisions as Envoy's ext_authz.

For each client request the proxy sends a separate request with the client's headers, and adds headers with
the method, target and address of the client's request. The sidecar accepts them only from trusted proxies,
because other peers could forge them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import unquote

from sidecar.domain.answers import Answer, AnswerStyle, Decision, answer_to
from sidecar.domain.cidr import AddressError, Cidr, parse_client_address
from sidecar.domain.client_address import PeerAddress
from sidecar.domain.decisions import Reason
from sidecar.domain.policy import AccessRequest
from sidecar.domain.prefix_trie import PrefixTrie
from sidecar.observe.logs import log_event
from sidecar.rpc.http import HttpExchange, HttpRequest
from sidecar.services.decider import Decider
from sidecar.services.templates import AnswerTemplates

LIMIT_HEADERS: Final = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
KNOWN_PEERS_MAX: Final = 1_024
SCOPED_PATHS_MAX: Final = 256
"""Maximum number of cached paths with a scope."""
LOGGED_FAULTS_MAX: Final = 64
"""Maximum number of faults in proxies' configurations that are logged, each once; all are counted."""

DIALECT: Final = "forward_auth"
"""The name of this service in the decision log."""
_TCP_PEER: Final = PeerAddress()
_log: Final = logging.getLogger("sidecar.http")

HeaderLine = tuple[str, str]


class ProxyFaultError(ValueError):
    """The proxy's configuration is wrong; the message says how to correct it."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """
    The form of one kind of proxy's requests and answers.

    `method_header` and `target_header` have the client's method and request target, `address_header` has its
    address, the last one of a list. `directives` says how to set each header in the proxy.
    """

    method_header: str
    target_header: str
    address_header: str
    encode: Callable[[Answer], bytes]
    directives: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """A dialect with the templates of its answers; `scope` is the scope in the path, None = no scope."""

    path: str
    dialect: Dialect
    render: Callable[[Decision, AccessRequest], bytes]
    scope: str | None = None


class ForwardAuthService:
    """Answers proxies over HTTP with the decisions of a `Decider`."""

    def __init__(
        self, decider: Decider, style: AnswerStyle, trusted: tuple[Cidr, ...], is_ready: Callable[[], bool]
    ) -> None:
        """
        Answer proxies in *trusted* and peers of Unix sockets, in *style*.

        *is_ready* answers `/readyz`, for the proxies' health checks.
        """
        self.pages: dict[bytes, Callable[[HttpExchange], None]] = {b"/readyz": self._serve_readiness}
        """What else is served, by path."""
        self._decider = decider
        self._style = style
        self._trusted = PrefixTrie(trusted)
        self._is_ready = is_ready
        self._endpoints = {
            path.encode(): _Endpoint(path, dialect, AnswerTemplates(style, dialect.encode).render)
            for path, dialect in DIALECTS.items()
        }
        self._scoped: dict[bytes, _Endpoint] = {}
        self._trust_by_host: dict[str, bool] = {}
        self._logged: set[str] = set()

    def serve(self, exchange: HttpExchange) -> None:
        """
        Answer one request of a proxy, now or after the store's answer.

        The body and the query are ignored: Caddy forwards the client's query.
        """
        request = exchange.request
        endpoint = self._endpoints.get(request.path) or self._scoped_endpoint(request.path)
        if endpoint is None:
            self._serve_page(exchange)
            return
        try:
            asked = self._asked(request, endpoint)
        except ProxyFaultError as error:
            exchange.answer(self._refuse(endpoint, str(error)))
            return
        decision = self._decider.decide(asked, None, _reply, (exchange, endpoint, asked))
        if decision is not None:
            exchange.answer(endpoint.render(decision, asked))

    def caller_of(self, request: HttpRequest) -> AccessRequest:
        """
        Convert a caller's own request, such as one to `/whoami`, to the policy's form.

        A trusted proxy states the caller's address; any other peer is the caller.
        """
        headers = _joined(request)
        if request.peer is None or self._is_trusted(request.peer[0]):
            stated = headers.get("x-forwarded-for") or headers.get("x-real-ip", "")
            return AccessRequest(request.method, "/", headers.get, stated.rpartition(",")[2].strip())
        return AccessRequest(request.method, "/", headers.get, request.peer[0], address_rule=_TCP_PEER)

    def _asked(self, request: HttpRequest, endpoint: _Endpoint) -> AccessRequest:
        """
        Convert the proxy's request to the policy's form.

        Raises:
            ProxyFaultError: the peer is not trusted, or a header is missing.
        """
        if request.peer is not None and not self._is_trusted(request.peer[0]):
            raise ProxyFaultError(
                f"{request.peer[0]} is not a trusted proxy; add its address to forward_auth.trusted_proxies"
            )
        headers = _joined(request)
        dialect = endpoint.dialect
        try:
            method, target = headers[dialect.method_header], headers[dialect.target_header]
        except KeyError as error:
            raise ProxyFaultError(_missing(endpoint, str(error.args[0]))) from None
        peer = headers.get(dialect.address_header, "")
        if not peer and self._decider.policy.client_address.reads_peer:
            raise ProxyFaultError(_missing(endpoint, dialect.address_header))
        client = peer.rpartition(",")[2].strip()
        return AccessRequest(method, target, headers.get, client, endpoint.scope, None, None, DIALECT)

    def _is_trusted(self, host: str) -> bool:
        known = self._trust_by_host.get(host)
        if known is None:
            try:
                known = self._trusted.contains(parse_client_address(host))
            except AddressError:
                known = False
            if len(self._trust_by_host) < KNOWN_PEERS_MAX:
                self._trust_by_host[host] = known
        return known

    def _scoped_endpoint(self, path: bytes) -> _Endpoint | None:
        """Return the endpoint of a path such as /auth/nginx/orders:read; None = unknown path."""
        known = self._scoped.get(path)
        if known is not None:
            return known
        prefix, _, scope = path.rpartition(b"/")
        endpoint = self._endpoints.get(prefix)
        if endpoint is None or not scope:
            return None
        scoped = replace(endpoint, scope=unquote(scope.decode("latin-1")))
        if len(self._scoped) < SCOPED_PATHS_MAX:
            self._scoped[path] = scoped
        return scoped

    def _refuse(self, endpoint: _Endpoint, problem: str) -> bytes:
        """Deny the request of a wrongly configured proxy, and log *problem* once."""
        if problem not in self._logged and len(self._logged) < LOGGED_FAULTS_MAX:
            self._logged.add(problem)
            log_event(
                _log, logging.ERROR, "refused a forward-auth request", at=endpoint.path, problem=problem
            )
        decision = self._decider.refuse(Reason.ROUTE_MISCONFIGURED, f"Configuration of the proxy: {problem}.")
        return endpoint.dialect.encode(answer_to(decision, self._style))

    def _serve_page(self, exchange: HttpExchange) -> None:
        page = self.pages.get(exchange.request.path)
        if page is not None:
            page(exchange)
            return
        known = ", ".join((*DIALECTS, *(path.decode() for path in self.pages)))
        exchange.answer(_page(404, f"There is no such page; there are {known}.\n".encode()))

    def _serve_readiness(self, exchange: HttpExchange) -> None:
        is_ready = self._is_ready()
        exchange.answer(_page(200 if is_ready else 503, b"ready\n" if is_ready else b"not ready\n"))


def _reply(decision: Decision, context: tuple[HttpExchange, _Endpoint, AccessRequest]) -> None:
    exchange, endpoint, asked = context
    exchange.answer(endpoint.render(decision, asked))


def _joined(request: HttpRequest) -> dict[str, str]:
    """Return the headers by name, repeats joined with ','."""
    joined: dict[str, str] = {}
    for raw_name, raw_value in request.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def _missing(endpoint: _Endpoint, header: str) -> str:
    return (
        f"{endpoint.path} needs the header {header}, which the request does not have;"
        f" set it with {endpoint.dialect.directives[header]}"
    )


def _page(status: int, body: bytes) -> bytes:
    head = f"{status}content-type: text/plain\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def encoded_response(status: int, headers: list[HeaderLine], body: bytes = b"") -> bytes:
    """Encode a response for `HttpExchange.answer`: three digits of status, header lines, body."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"{status}{lines}content-length: {len(body)}\r\n\r\n".encode() + body


def _headers_of(answer: Answer) -> list[HeaderLine]:
    """
    Return the headers of *answer* for every dialect.

    An allowed answer has every header that a proxy copies, if necessary with an empty value: Caddy replaces a
    missing header by the name of its variable.
    """
    headers = list(answer.client_headers)
    if answer.is_allowed:
        names = {name for name, _ in headers}
        headers += [(name, "") for name in LIMIT_HEADERS if name not in names]
        headers += answer.upstream_headers
        headers.append(("x-auth-reason", answer.decision.reason.public_label))
    headers.append(("x-auth-status", str(answer.status)))
    return headers


def encode(answer: Answer) -> bytes:
    """Encode for proxies that forward any status with headers and body: Caddy, Traefik, HAProxy."""
    return encoded_response(answer.status, _headers_of(answer), answer.body)


def encode_for_nginx(answer: Answer) -> bytes:
    """
    Encode for nginx's auth_request, which only accepts 2xx, 401 and 403, and ignores the body.

    nginx builds the client's response from `x-auth-status`, the actual status, and `x-auth-problem`, the
    body. A body would make nginx close the connection (docs/integrate/nginx.md).
    """
    headers = [(name, value) for name, value in _headers_of(answer) if name != "content-type"]
    if not answer.is_allowed:
        headers.append(("x-auth-problem", answer.body.decode()))
    return encoded_response(answer.status if answer.status in (200, 401) else 403, headers)


def encode_for_accel(answer: Answer) -> bytes:
    """Encode for nginx with the sidecar as the first upstream: X-Accel-Redirect forwards allowed requests."""
    headers = _headers_of(answer)
    if answer.is_allowed:
        headers.append(("x-accel-redirect", "@app"))
    return encoded_response(answer.status, headers, answer.body)


_NGINX: Final = {
    "x-original-method": "'proxy_set_header X-Original-Method $request_method;' (nginx)",
    "x-original-uri": "'proxy_set_header X-Original-URI $request_uri;' (nginx)",
    "x-real-ip": "'proxy_set_header X-Real-IP $remote_addr;' (nginx)",
}
_FORWARDED: Final = dict.fromkeys(
    ("x-forwarded-method", "x-forwarded-uri", "x-forwarded-for"),
    "'forward_auth' (Caddy), ForwardAuth (Traefik) or the headers in sidecar-auth.lua (HAProxy)",
)
_FORWARD: Final = Dialect("x-forwarded-method", "x-forwarded-uri", "x-forwarded-for", encode, _FORWARDED)

DIALECTS: Final = {
    "/auth/nginx": Dialect("x-original-method", "x-original-uri", "x-real-ip", encode_for_nginx, _NGINX),
    "/auth/accel": Dialect("x-original-method", "x-original-uri", "x-real-ip", encode_for_accel, _NGINX),
    "/auth/forward": _FORWARD,
    "/auth/haproxy": _FORWARD,
}
"""The dialects by path."""
