"""
Calls of the admin API over HTTP: every call has one deadline, every answer a bound.

Changes carry an idempotency key, so a change whose answer was lost with its connection is sent again
under the same key and happens once. Redirects are not followed and proxies of the environment are not
used: a token goes to the server that was named, and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote

import httpx

from sidecar.admin_client.address import ServerAddress
from sidecar.admin_client.failures import AdminCallError, Failure, failure_of
from sidecar.observe.build import VERSION

ANSWER_BYTES_MAX = 32 * 1024 * 1024
"""One page of 500 integrations with everything they may have is about 5 MB."""
LINE_BYTES_MAX = 4 * 1024 * 1024
"""One exported audit entry."""
ERROR_BYTES_MAX = 1024 * 1024
ATTEMPTS_MAX = 3
"""How often a call is sent when its connection is lost before the answer, within the one deadline."""
PAGE_MAX = 500

Query = Mapping[str, str | int | bool | Sequence[str] | None]
Result = TypeVar("Result")


class Answer(NamedTuple):
    """What a call brought: the JSON object, and whether it repeats what an earlier call was told."""

    data: dict[str, Any]
    is_replay: bool = False


class Listing(NamedTuple):
    """
    Members of a list over its pages.

    `next_after` is where more begin, None = these are all; `rest` is what the first page said besides.
    """

    items: list[dict[str, Any]]
    next_after: str | None
    rest: dict[str, Any]


def path_to(*segments: str) -> str:
    """
    The path below `/v1` that *segments* name; none of them can reach beyond its place.

    >>> path_to("integrations", "a/b", "suspend")
    '/v1/integrations/a%2Fb/suspend'

    Raises:
        AdminCallError: a segment is empty, or means another place.
    """
    for segment in segments:
        if segment in ("", ".", ".."):
            raise AdminCallError(Failure.REFUSED, [f"{segment!r} is no id", "name the id as it is listed"])
    return "/".join(["/v1", *(quote(segment, safe="") for segment in segments)])


class AdminClient:
    """One connection to one admin listener, with one administrator's token. Use it in a `with`."""

    def __init__(
        self,
        address: ServerAddress,
        token: str,
        *,
        ca: Path | None = None,
        timeout_s: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """
        Prepare calls to *address*; nothing is connected yet.

        Args:
            address: where to.
            token: of the administrator.
            ca: PEM file of the CA to trust instead of the machine's; None = the machine's.
            timeout_s: how long a call may take, from its first byte to the last of its answer.
            transport: in place of sockets, for programs that bring their own.

        Raises:
            AdminCallError: the CA file cannot be used.
        """
        self._address = address
        self._timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {token}", "User-Agent": f"sidecar/{VERSION}"}
        self._transport = transport or httpx.AsyncHTTPTransport(
            verify=_trust(address, ca), uds=address.socket_path or None, trust_env=False
        )
        self._runner = asyncio.Runner()
        self._http: httpx.AsyncClient | None = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        if self._http is not None:
            self._runner.run(self._http.aclose())
        self._runner.close()

    def get(self, path: str, query: Query | None = None, *, extra_s: float = 0.0) -> dict[str, Any]:
        """
        Read one thing; *extra_s* is added to the deadline of a call that takes long by its nature.

        Raises:
            AdminCallError: there was no such answer.
        """
        return self._run(self._call("GET", path, query, None, {}), extra_s, is_change=False).data

    def listed(
        self, path: str, query: Query | None = None, limit: int = PAGE_MAX, page_max: int = PAGE_MAX
    ) -> Listing:
        """
        Read up to *limit* members of a list, over as many pages of at most *page_max* as that takes.

        Raises:
            AdminCallError: one of the pages did not come.
        """
        items: list[dict[str, Any]] = []
        after: str | None = None
        rest: dict[str, Any] = {}
        while True:
            page_limit = min(page_max, limit - len(items))
            page = self.get(path, {**(query or {}), "limit": page_limit, "after": after})
            items += page.pop("items")
            after = page.pop("next_after") or None
            rest = rest or page
            if after is None or len(items) >= limit:
                return Listing(items, after, rest)

    def change(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Query | None = None,
        idempotency_key: str,
        expected_generation: int | None = None,
        extra_s: float = 0.0,
    ) -> Answer:
        """
        Make one change, once, however often it has to be sent.

        Args:
            method: POST, PATCH or DELETE.
            path: from `path_to`.
            body: the JSON object to send; None = no body.
            query: the query's parameters; None values are left out.
            idempotency_key: names this change; equal keys, one change.
            expected_generation: refuse with a conflict unless the record is at it; None = whatever it is.
            extra_s: added to the deadline, for a change that waits for others to confirm.

        Raises:
            AdminCallError: refused, or without an answer; `may_have_happened` tells which.
        """
        headers = {"Idempotency-Key": idempotency_key}
        if expected_generation is not None:
            headers["If-Match"] = f'"{expected_generation}"'
        return self._run(self._call(method, path, query, body, headers), extra_s, is_change=True)

    def copy_lines(self, path: str, query: Query | None, write: Callable[[str], object]) -> int:
        """
        Hand each line of a stream to *write*, as it comes; return how many there were.

        The deadline holds for each piece of the stream, not for the whole, which may be long.

        Raises:
            AdminCallError: the stream did not begin, or did not come to its end.
        """
        return self._run(self._copy(path, query, write), None, is_change=False)

    def _run(self, call: Coroutine[Any, Any, Result], extra_s: float | None, *, is_change: bool) -> Result:
        timeout_s = None if extra_s is None else self._timeout_s + extra_s

        async def bounded() -> Result:
            async with asyncio.timeout(timeout_s):
                return await call

        try:
            return self._runner.run(bounded())
        except (TimeoutError, httpx.TimeoutException):
            waited = f"{(timeout_s or self._timeout_s):g} s"
            raise AdminCallError(
                Failure.UNAVAILABLE,
                [f"no answer from {self._address.text} within {waited}", "give it longer with --timeout 60s"],
                may_have_happened=is_change,
            ) from None
        except httpx.ConnectError as error:
            raise self._not_reached(error) from None
        except httpx.HTTPError as error:
            raise AdminCallError(
                Failure.UNAVAILABLE,
                [
                    f"the connection to {self._address.text} was lost: {str(error) or type(error).__name__}",
                    "try again"
                    if self._address.is_tls
                    else "try again; if it speaks TLS there, write https://",
                ],
                may_have_happened=is_change,
            ) from None

    def _not_reached(self, error: Exception) -> AdminCallError:
        why = str(error)
        advice = "is the sidecar running, and does 'listen.admin' name this address? See --server"
        if "not valid for" in why:
            advice = "its certificate has other names: ask for it by one of those"
        elif "CERTIFICATE_VERIFY_FAILED" in why:
            advice = "its certificate is not trusted: give the CA that signed it with --ca FILE"
        elif "WRONG_VERSION_NUMBER" in why or "RECORD_LAYER" in why:
            advice = "it does not speak TLS there: write http:// instead of https://"
        return AdminCallError(Failure.UNAVAILABLE, [f"cannot reach {self._address.text}: {why}", advice])

    async def _call(
        self,
        method: str,
        path: str,
        query: Query | None,
        body: Mapping[str, Any] | None,
        headers: dict[str, str],
    ) -> Answer:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                return await self._send(method, path, query, body, headers)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                # The server may have closed a kept connection, or ended in the middle of the call. The key
                # makes a second sending of a change harmless.
                if attempt == ATTEMPTS_MAX:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _send(
        self,
        method: str,
        path: str,
        query: Query | None,
        body: Mapping[str, Any] | None,
        headers: dict[str, str],
    ) -> Answer:
        content = None if body is None else json.dumps(body).encode()
        sent = {**headers, "Accept": "application/json, application/problem+json"}
        if content is not None:
            sent["Content-Type"] = "application/json"
        request = self._client().build_request(
            method, path, params=_parameters(query), content=content, headers=sent
        )
        response = await self._client().send(request, stream=True)
        try:
            await _raise_for_status(response, self._address.text)
            data = _object(await _read(response, ANSWER_BYTES_MAX), self._address.text)
        finally:
            await response.aclose()
        return Answer(data, response.headers.get("idempotency-replayed") == "true")

    async def _copy(self, path: str, query: Query | None, write: Callable[[str], object]) -> int:
        request = self._client().build_request(
            "GET", path, params=_parameters(query), timeout=self._timeout_s
        )
        response = await self._client().send(request, stream=True)
        count = 0
        try:
            await _raise_for_status(response, self._address.text)
            async for line in _lines(response):
                write(line)
                count += 1
        finally:
            await response.aclose()
        return count

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            self._http = httpx.AsyncClient(
                transport=self._transport,
                base_url=self._address.base_url,
                headers=self._headers,
                timeout=None,  # noqa: S113 - `_run` holds every call to its deadline as a whole
                trust_env=False,
                follow_redirects=False,
            )
        return self._http


def _trust(address: ServerAddress, ca: Path | None) -> ssl.SSLContext | bool:
    if not address.is_tls:
        return False
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise AdminCallError(
            Failure.REFUSED,
            [f"the CA file {ca} cannot be used: {error}", "name a PEM file with a CA's certificate"],
        ) from None


def _parameters(query: Query | None) -> httpx.QueryParams:
    """The parameters that have a value, as the API reads them; one of several values stands several times."""
    parameters: list[tuple[str, str | int | float | bool | None]] = []
    for name, value in (query or {}).items():
        if isinstance(value, bool):
            parameters.append((name, str(value).lower()))
        elif isinstance(value, str | int):
            parameters += [(name, str(value))] if value != "" else []
        else:
            parameters += [(name, item) for item in value or ()]
    return httpx.QueryParams(parameters)


async def _raise_for_status(response: httpx.Response, server: str) -> None:
    if response.is_success:
        return
    body = await _read(response, ERROR_BYTES_MAX)
    raise failure_of(response.status_code, response.headers.get("content-type", ""), body, server)


async def _read(response: httpx.Response, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    total = 0
    async for part in response.aiter_bytes():
        total += len(part)
        if total > bytes_max:
            raise AdminCallError(
                Failure.UNAVAILABLE,
                [f"the answer is larger than {bytes_max} bytes", "ask for less with --limit or --search"],
            )
        parts.append(part)
    return b"".join(parts)


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """The lines of a stream; one without an end would fill the memory, so it has a bound."""
    rest = b""
    async for part in response.aiter_bytes():
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line.decode()
        if len(rest) > LINE_BYTES_MAX:
            raise AdminCallError(Failure.UNAVAILABLE, [f"a line is longer than {LINE_BYTES_MAX} bytes"])
    if rest:
        raise AdminCallError(
            Failure.UNAVAILABLE, ["the stream ended in the middle of a line", "run it again"]
        )


def _object(body: bytes, server: str) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise AdminCallError(
            Failure.UNAVAILABLE,
            [f"{server} answered with no JSON object", "does --server name a sidecar's admin listener?"],
            may_have_happened=True,
        )
    return data
