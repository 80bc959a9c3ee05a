"""One call of the API: its caller, its source, and the parts of the request, read within bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from time import monotonic_ns
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from sidecar.domain.changes import ChangeContext
from sidecar.domain.refusals import RefusedError
from sidecar.domain.roles import Actor
from sidecar.services.admin.concurrency import CallLimit
from sidecar.services.admin.problems import ApiCode, Fault, invalid, problem_error

BODY_BYTES_MAX = 1_048_576
BODY_TIMEOUT_S = 10.0
"""Deadline for the whole body, so that a slow client cannot occupy a call for longer."""
QUERY_CHARS_MAX = 16_384
FAULTS_MAX = 100
"""Maximum number of faults in one answer."""

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated caller; its token expires at `expires_at_us`."""

    actor: Actor
    name: str
    expires_at_us: int


@dataclass(slots=True)
class Call:
    """
    One call, from its first byte until it is logged.

    `source` is the caller's address or 'local'. `long_calls` bounds calls that may take minutes, and
    `ending` releases what the call holds once its answer is sent. `noted` are extra fields of the log line.
    `waited_ns` was spent waiting for other sidecars and does not count towards the call's duration.
    """

    request: Request
    request_id: str
    source: str
    long_calls: CallLimit
    began_ns: int = field(default_factory=monotonic_ns)
    caller: Caller | None = None
    is_change: bool = False
    route: str = "other"
    noted: dict[str, object] = field(default_factory=dict)
    waited_ns: int = 0
    ending: ExitStack = field(default_factory=ExitStack)
    _body: object = None
    _digest: str = ""

    @property
    def actor(self) -> Actor:
        """The caller; only after authentication."""
        assert self.caller is not None  # every other call was refused
        return self.caller.actor

    def take_long(self) -> None:
        """
        Count this call among those that may take minutes, until the answer is sent.

        Raises:
            ProblemError: too many long calls.
        """
        self.ending.enter_context(self.long_calls.take())

    @property
    def took_ms(self) -> int:
        """Milliseconds since the call came in."""
        return (monotonic_ns() - self.began_ns) // 1_000_000

    def note(self, **fields: object) -> None:
        """Add *fields* to the call's log line."""
        self.noted.update(fields)

    def path(self, name: str) -> str:
        """Return a variable part of the path."""
        return str(self.request.path_params[name])

    def query(self, model: type[Model]) -> Model:
        """
        Parse the query string as *model*.

        Raises:
            ProblemError: an unknown or repeated parameter, or an invalid value.
        """
        if len(self.request.url.query) > QUERY_CHARS_MAX:
            raise _bad("query", f"the query string is longer than {QUERY_CHARS_MAX} characters", "shorten it")
        values: dict[str, object] = {}
        for name, value in self.request.query_params.multi_items():
            if _takes_several(model, name):
                several = values.setdefault(name, [])
                assert isinstance(several, list)
                several.append(value)
            elif name in values:
                raise _bad(name[:80], "parameter given more than once", "send it once")
            else:
                values[name] = value
        return _checked(model, values)

    async def body(self, model: type[Model], bytes_max: int = BODY_BYTES_MAX) -> Model:
        """
        Read the body, of at most *bytes_max*, as *model*; no body counts as an empty object.

        Raises:
            ProblemError: too large, too slow, another type, not JSON, or an invalid value.
        """
        raw = await self._read(bytes_max)
        if raw:
            self._require_json_type()
            self._body = _parsed(raw)
        else:
            self._body = {}
        if not isinstance(self._body, dict):
            raise _bad("", "the body is not a JSON object", "send an object: {...}")
        return _checked(model, self._body)

    async def no_body(self) -> None:
        """
        Refuse a body where the method has none.

        Raises:
            ProblemError: the request has a body.
        """
        if await self._read(BODY_BYTES_MAX):
            raise _bad("", f"{self.request.method} takes no body", "send parameters in the query string")

    def header(self, name: str) -> str | None:
        """
        Return a header that may be given once.

        Raises:
            ProblemError: it is given more than once.
        """
        values = self.request.headers.getlist(name)
        if len(values) > 1:
            raise problem_error(
                ApiCode.INVALID_HEADER, f"{name} is given more than once", "send it once", name
            )
        return values[0] if values else None

    def change_context(self, part: str = "") -> ChangeContext:
        """
        Return the origin of a change; *part* distinguishes the changes of one call.

        Raises:
            RefusedError: the idempotency key is invalid.
            ProblemError: it is empty, or given more than once.
        """
        key = self.header("Idempotency-Key")
        if key is None:
            return ChangeContext(self.request_id, self.source)
        if not key:
            raise problem_error(
                ApiCode.INVALID_HEADER,
                "Idempotency-Key is empty",
                "send a key, or leave the header out",
                "Idempotency-Key",
            )
        return ChangeContext(self.request_id, self.source, key + part, self._fingerprint() + part)

    def _fingerprint(self) -> str:
        """A digest of the request, without the time to wait for confirmation."""
        if self._digest:
            return self._digest
        query = sorted(item for item in self.request.query_params.multi_items() if item[0] != "wait")
        asked = [
            self.request.method,
            self.request.url.path,
            query,
            self.request.headers.getlist("If-Match"),
            self._body,
        ]
        self._digest = sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return self._digest

    async def _read(self, bytes_max: int) -> bytes:
        length = self.request.headers.get("Content-Length", "0")
        if length.isdecimal() and int(length[:20]) > bytes_max:
            raise _too_large(bytes_max)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in self.request.stream():
                    size += len(chunk)
                    if size > bytes_max:
                        raise _too_large(bytes_max)
                    chunks.append(chunk)
        except TimeoutError:
            raise problem_error(
                ApiCode.BODY_TOO_SLOW,
                f"the body took longer than {BODY_TIMEOUT_S:g} s to arrive",
                "send the whole body at once",
            ) from None
        return b"".join(chunks)

    def _require_json_type(self) -> None:
        essence = (self.header("Content-Type") or "").partition(";")[0].strip().lower()
        if essence != "application/json":
            raise problem_error(
                ApiCode.UNSUPPORTED_MEDIA_TYPE,
                f"the body is {essence[:80] or 'of no type'!a}, not JSON",
                "send JSON with 'Content-Type: application/json'",
                "Content-Type",
            )


def request_id_of(values: Sequence[str], source: str) -> str | None:
    """The caller's request id, if it sent a valid one."""
    if len(values) != 1 or not values[0]:
        return None
    try:
        return ChangeContext(values[0], source).request_id
    except RefusedError:
        return None


def _parsed(raw: bytes) -> object:
    """Parse *raw* as strict JSON: no repeated names, no NaN or Infinity, no half of a surrogate pair."""
    try:
        value: object = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()  # fails on half of a surrogate pair
        return value
    except UnicodeDecodeError:
        raise problem_error(ApiCode.INVALID_JSON, "the body is not UTF-8", "encode it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        message = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise problem_error(
            ApiCode.INVALID_JSON, f"the body is not JSON: {message}", "send one JSON object (RFC 8259)"
        ) from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # RFC 8259 4: the meaning of a repeated name is undefined.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a repeated name")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _checked(model: type[Model], values: Mapping[str, object]) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise invalid(map(_fault, error.errors(include_url=False)[:FAULTS_MAX])) from None


_REMEDIES: Mapping[str, str] = {
    "missing": "send it",
    "extra_forbidden": "leave it out, or check the spelling in /v1/openapi.json",
}


def _fault(error: Any) -> Fault:
    """Convert an error of pydantic; never quotes the value, which may be a secret."""
    kind = str(error["type"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        message = "unknown field"
    elif kind == "missing":
        message = "required field is missing"
    remedy = _REMEDIES.get(kind, "send a value as /v1/openapi.json describes it")
    return Fault(ApiCode.INVALID_VALUE.text, _where(error["loc"]), message, remedy)


def _where(location: Sequence[str | int]) -> str:
    """
    Return the path of a field, as answers write it.

    >>> _where(("changes", 3, "scopes.add", "scopes", 0))
    'changes[3].scopes[0]'
    """
    text = ""
    latest: str | int = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not (isinstance(latest, int) and "." in part):  # the name of a union's member is not a field
            text += f".{part[:80]}" if text else part[:80]
        latest = part
    return text


def _takes_several(model: type[BaseModel], name: str) -> bool:
    known = model.model_fields.get(name)
    return known is not None and get_origin(known.annotation) is list


def _too_large(bytes_max: int) -> Exception:
    return problem_error(
        ApiCode.BODY_TOO_LARGE, f"the body is larger than {bytes_max} bytes", "send fewer changes at a time"
    )


def _bad(where: str, message: str, remedy: str) -> Exception:
    return invalid([Fault(ApiCode.INVALID_VALUE.text, where, message, remedy)])
