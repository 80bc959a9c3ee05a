"""
Calls the admin API over HTTP; every call has a deadline, every answer a size limit.

Changes carry an idempotency key: a change whose connection was lost before the answer is sent again with the
same key, and made once. Redirects and proxies of the environment are ignored, so a token is sent only to the
server that the user named.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import httpx

from sidecar.admin_client.address import ServerAddress
from sidecar.admin_client.failures import AdminCallError, Failure, failure_of
from sidecar.observe.build import VERSION

ANSWER_BYTES_MAX = 32 * 1024 * 1024
"""A page of 500 integrations with all fields at their maximum is about 5 MB."""
LINE_BYTES_MAX = 4 * 1024 * 1024
"""One exported audit entry."""
ERROR_BYTES_MAX = 1024 * 1024
ATTEMPTS_MAX = 3
"""How often a call is sent, within its deadline, if its connection is lost before the answer."""
PAGE_MAX = 500

Query = Mapping[str, str | int | bool | Sequence[str] | None]
Result = TypeVar("Result")


class Answer(NamedTuple):
    """An answer: the JSON object, and whether it repeats the answer to an earlier call."""

    data: dict[str, Any]
    is_replay: bool = False


_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+")


class Listing(NamedTuple):
    """
    The items of a list over several pages.

    `next_after` is the cursor of further items, None = no more; `rest` has the first page's other fields.
    """

    items: list[dict[str, Any]]
    next_after: str | None
    rest: dict[str, Any]


def path_to(*segments: str) -> str:
    """
    The path below `/v1` that *segments* name; no id has a character that a path would have to escape.

    >>> path_to("integrations", "acme-erp", "suspend")
    '/v1/integrations/acme-erp/suspend'

    Raises:
        AdminCallError: a segment is empty, '.' or '..', or has other characters than ASCII letters, digits,
            '.', '_', '~' and '-'.
    """
    for segment in segments:
        if segment in (".", "..") or not _SEGMENT.fullmatch(segment):
            raise AdminCallError(Failure.REFUSED, [f"{segment!r} is not an id", "use an id as listed"])
    return "/".join(["/v1", *segments])


class AdminClient:
    """A connection to an admin listener with an administrator's token; a context manager."""

    def __init__(
        self, address: ServerAddress, token: str, *, ca: Path | None = None, timeout_s: float = 10.0
    ) -> None:
        """
        Prepare calls to *address*; connect with the first call.

        Args:
            address: the admin listener.
            token: of the administrator.
            ca: PEM file of the CA to trust; None = the machine's CAs.
            timeout_s: how long a call may take, from its first byte to the last byte of its answer.

        Raises:
            AdminCallError: the CA file cannot be used.
        """
        self._address = address
        self._timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {token}", "User-Agent": f"sidecar/{VERSION}"}
        self._transport = httpx.AsyncHTTPTransport(
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
        Send a GET; *extra_s* is added to the deadline, for slow calls.

        Raises:
            AdminCallError: the call was refused, or got no valid answer.
        """
        return self._run(self._call("GET", path, query, None, {}), extra_s, is_change=False).data

    def listed(
        self,
        path: str,
        query: Query | None = None,
        limit: int = PAGE_MAX,
        page_max: int = PAGE_MAX,
        *,
        extra_s: float = 0.0,
    ) -> Listing:
        """
        Read up to *limit* items of a list, in pages of at most *page_max*; *extra_s* as for `get`.

        Raises:
            AdminCallError: reading a page failed.
        """
        items: list[dict[str, Any]] = []
        after: str | None = None
        rest: dict[str, Any] = {}
        while True:
            page_limit = min(page_max, limit - len(items))
            page = self.get(path, {**(query or {}), "limit": page_limit, "after": after}, extra_s=extra_s)
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
        Make one change exactly once, with retries.

        Args:
            method: POST, PATCH or DELETE.
            path: from `path_to`.
            body: the JSON object to send; None = no body.
            query: the query's parameters; None values are left out.
            idempotency_key: calls with the same key make one change.
            expected_generation: refuse unless the record has this generation; None = any.
            extra_s: added to the deadline, for a change that waits for confirmations.

        Raises:
            AdminCallError: refused, or not answered: then `may_have_happened` is set.
        """
        headers = {"Idempotency-Key": idempotency_key}
        if expected_generation is not None:
            headers["If-Match"] = f'"{expected_generation}"'
        return self._run(self._call(method, path, query, body, headers), extra_s, is_change=True)

    def copy_lines(self, path: str, query: Query | None, write: Callable[[str], object]) -> int:
        """
        Pass each line of a streamed answer to *write*; return the number of lines.

        The timeout applies to each read, not to the whole stream, which may be long.

        Raises:
            AdminCallError: the call was refused, or the stream ended early.
        """
        return self._run(self._copy(path, query, write), None, is_change=False)

    def copy_file(
        self, path: str, query: Query | None, write: Callable[[bytes], object], *, extra_s: float
    ) -> int:
        """
        Pass each piece of a file to *write*; return the number of bytes.

        The timeout, with *extra_s* for preparing the file, applies to each read, not to the whole file.

        Raises:
            AdminCallError: the call was refused, or the file is incomplete.
        """
        copying = self._copy_file(path, query, write, self._timeout_s + extra_s)
        return self._run(copying, None, is_change=False)

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
                [f"no answer from {self._address.text} within {waited}", "extend it with --timeout 60s"],
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
                    else "try again; if the listener uses TLS, write https://",
                ],
                may_have_happened=is_change,
            ) from None

    def _not_reached(self, error: Exception) -> AdminCallError:
        why = str(error)
        advice = "is the sidecar running, and does 'listen.admin' name this address? See --server"
        if "not valid for" in why:
            advice = "its certificate is for other names: use one of them as --server"
        elif "CERTIFICATE_VERIFY_FAILED" in why:
            advice = "its certificate is not trusted: pass the CA that signed it with --ca FILE"
        elif "WRONG_VERSION_NUMBER" in why or "RECORD_LAYER" in why:
            advice = "the listener does not use TLS: write http:// instead of https://"
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
                # The server may have closed an idle connection, or ended during the call. The idempotency
                # key makes sending a change twice harmless.
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
        async with self._client().stream(
            method, path, params=_parameters(query), content=content, headers=sent
        ) as response:
            await _raise_for_status(response, self._address.text)
            data = _object(await _read(response, ANSWER_BYTES_MAX), self._address.text)
            return Answer(data, response.headers.get("idempotency-replayed") == "true")

    async def _copy(self, path: str, query: Query | None, write: Callable[[str], object]) -> int:
        count = 0
        async with self._client().stream(
            "GET", path, params=_parameters(query), timeout=self._timeout_s
        ) as response:
            await _raise_for_status(response, self._address.text)
            async for line in _lines(response):
                write(line)
                count += 1
        return count

    async def _copy_file(
        self, path: str, query: Query | None, write: Callable[[bytes], object], timeout_s: float
    ) -> int:
        count = 0
        async with self._client().stream(
            "GET", path, params=_parameters(query), timeout=timeout_s
        ) as response:
            await _raise_for_status(response, self._address.text)
            async for part in response.aiter_bytes():
                write(part)
                count += len(part)
        return count

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            self._http = httpx.AsyncClient(
                transport=self._transport,
                base_url=self._address.base_url,
                headers=self._headers,
                timeout=None,  # noqa: S113 - `_run` applies the deadline to the whole call
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
            [f"the CA file {ca} cannot be used: {error}", "pass a PEM file with a CA certificate"],
        ) from None


def _parameters(query: Query | None) -> httpx.QueryParams:
    """The parameters that have a value, in the API's form; a list becomes a repeated parameter."""
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
                [f"the answer is larger than {bytes_max} bytes", "use a lower --limit, or --search"],
            )
        parts.append(part)
    return b"".join(parts)


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """Yield the lines of a stream, each at most `LINE_BYTES_MAX` long."""
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
            [f"{server} did not answer with a JSON object", "is --server a sidecar's admin listener?"],
            may_have_happened=True,
        )
    return data
