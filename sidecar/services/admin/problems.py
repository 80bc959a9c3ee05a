"""
Problem documents (RFC 9457): every answer that is not the one asked for.

One table says which status an error of the domain or of the registry becomes. `code` is the word of
`domain.refusals.Code`, or one of `ApiCode`; both lists are closed and never change once published.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NotRequired

from starlette.responses import Response
from typing_extensions import TypedDict

from sidecar.domain.refusals import GenerationConflictError, RefusalKind, RefusedError
from sidecar.stores.registry.protocol import (
    RegistryDamagedError,
    RegistryError,
    RegistryOverloadedError,
    RegistryTimeoutError,
)

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_S = 1
"""After a fault of the store: it is looked at again within a second."""

KIND_STATUS: Mapping[RefusalKind, int] = {
    RefusalKind.INVALID: 422,
    RefusalKind.FORBIDDEN: 403,
    RefusalKind.NOT_FOUND: 404,
    RefusalKind.CONFLICT: 409,
}


class ApiCode(Enum):
    """What can be wrong besides the refusals of the domain: the word, and its status."""

    INVALID_HEADER = ("invalid_header", 400)
    UNAUTHENTICATED = ("unauthenticated", 401)
    NOT_FOUND = ("not_found", 404)
    METHOD_NOT_ALLOWED = ("method_not_allowed", 405)
    BODY_TOO_SLOW = ("body_too_slow", 408)
    PLAN_CHANGED = ("plan_changed", 409)
    WEBHOOK_SECRETS_OFF = ("webhook_secrets_off", 409)
    BODY_TOO_LARGE = ("body_too_large", 413)
    UNSUPPORTED_MEDIA_TYPE = ("unsupported_media_type", 415)
    INVALID_FILE = ("invalid_file", 422)
    INVALID_JSON = ("invalid_json", 422)
    INVALID_VALUE = ("invalid_value", 422)
    TOO_MANY_ATTEMPTS = ("too_many_attempts", 429)
    INTERNAL = ("internal", 500)
    REGISTRY_DAMAGED = ("registry_damaged", 500)
    OVERLOADED = ("overloaded", 503)
    STORE_UNAVAILABLE = ("store_unavailable", 503)
    TIMEOUT = ("timeout", 504)

    def __init__(self, word: str, status: int) -> None:
        """Spread the row over named attributes."""
        self.word = word
        self.status = status


FIELD_NAMES: Mapping[str, str] = {
    "expires_at_us": "expires_at",
    "until_us": "until",
    "overlap_us": "overlap",
    "expected_generation": "If-Match",
    "idempotency_key": "Idempotency-Key",
    "administrator_id": "id",
}
"""How fields of commands are called in the API, where that is another name."""


class ProblemMemberView(TypedDict):
    """One thing that was wrong, where, and what to do."""

    code: str
    field: str
    message: str
    remedy: str


class ProblemView(TypedDict):
    """
    A problem document (RFC 9457).

    `may_have_happened` stands in failed changes: true = only a look, or a repeat under the same
    idempotency key, can tell.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    problems: list[ProblemMemberView]
    may_have_happened: NotRequired[bool]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that was wrong: see `domain.refusals.Problem`; `code` as it stands in answers."""

    code: str
    field: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Problem:
    """
    An answer that is not the one asked for.

    `may_have_happened` None = it says nothing of a change; True = only a look at the registry, or a repeat
    under the same idempotency key, can tell whether the change was made.
    """

    status: int
    code: str
    detail: str
    faults: tuple[Fault, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    may_have_happened: bool | None = None


class ProblemError(Exception):
    """Ends a call with `problem` as its answer."""

    def __init__(self, problem: Problem) -> None:
        """Answer with *problem*."""
        super().__init__(problem.detail)
        self.problem = problem


def problem_error(code: ApiCode, detail: str, remedy: str = "", where: str = "") -> ProblemError:
    """The error of one fault at *where*, with its *remedy*."""
    faults = (Fault(code.word, where, detail, remedy),) if remedy else ()
    return ProblemError(Problem(code.status, code.word, _sentence(detail, remedy), faults))


def retry_error(code: ApiCode, detail: str, retry_after_s: int = RETRY_AFTER_S) -> ProblemError:
    """The error of a call that may be repeated after *retry_after_s*."""
    headers = {"Retry-After": str(retry_after_s)}
    return ProblemError(Problem(code.status, code.word, detail, headers=headers))


def refused(error: RefusedError, names: Mapping[str, str] = FIELD_NAMES, prefix: str = "") -> Problem:
    """The problem of a refusal by the domain; fields get the API's *names*, and *prefix* before them."""
    status = 412 if isinstance(error, GenerationConflictError) else KIND_STATUS[error.kind]
    faults = tuple(
        Fault(problem.code.word, prefix + api_name(problem.field, names), problem.message, problem.remedy)
        for problem in error.problems
    )
    headers = {"ETag": f'"{error.actual}"'} if isinstance(error, GenerationConflictError) else {}
    return Problem(status, error.code.word, str(error), faults, headers)


def api_name(name: str, names: Mapping[str, str] = FIELD_NAMES) -> str:
    """
    What the API calls the domain's field *name*; an index stays.

    >>> api_name("expires_at_us"), api_name("scopes[3]")
    ('expires_at', 'scopes[3]')
    """
    head, bracket, rest = name.partition("[")
    return names.get(head, head) + bracket + rest


def store_failed(error: RegistryError, is_change: bool) -> Problem:
    """The problem of a registry that could not do its part."""
    code = ApiCode.STORE_UNAVAILABLE
    if isinstance(error, RegistryTimeoutError):
        code = ApiCode.TIMEOUT
    elif isinstance(error, RegistryOverloadedError):
        code = ApiCode.OVERLOADED
    elif isinstance(error, RegistryDamagedError):
        code = ApiCode.REGISTRY_DAMAGED
    headers = {"Retry-After": str(RETRY_AFTER_S)} if code.status == 503 else {}
    may_have_happened = error.may_have_happened if is_change else None
    return Problem(code.status, code.word, str(error), (), headers, may_have_happened)


def problem_of(error: BaseException, is_change: bool) -> Problem | None:
    """The answer that *error* stands for; None = it is a fault of our own."""
    if isinstance(error, ProblemError):
        return error.problem
    if isinstance(error, RefusedError):
        return refused(error)
    if isinstance(error, RegistryError):
        return store_failed(error, is_change)
    return None


def own_fault(is_change: bool) -> Problem:
    """The answer to a fault of our own: it says nothing of how the program is made."""
    return Problem(
        ApiCode.INTERNAL.status,
        ApiCode.INTERNAL.word,
        "a fault of the sidecar; its log holds the details under this request id",
        may_have_happened=True if is_change else None,
    )


def document(problem: Problem, request_id: str) -> ProblemView:
    """*problem* as its document."""
    body: ProblemView = {
        "type": f"/problems/{problem.code}",
        "title": problem.code.replace("_", " ").capitalize(),
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "request_id": request_id,
        "problems": [_fault(fault) for fault in problem.faults],
    }
    if problem.may_have_happened is not None:
        body["may_have_happened"] = problem.may_have_happened
    return body


def respond(problem: Problem, request_id: str) -> Response:
    """*problem* as an HTTP answer."""
    body = json.dumps(document(problem, request_id)).encode() + b"\n"
    return Response(body, problem.status, dict(problem.headers), PROBLEM_JSON)


def invalid(faults: Iterable[Fault]) -> ProblemError:
    """The error of one or more faults of a request's parts."""
    kept = tuple(faults)
    detail = "; ".join(f"{one.field}: {_sentence(one.message, one.remedy)}" for one in kept[:3])
    more = f"; and {len(kept) - 3} more" if len(kept) > 3 else ""
    code = ApiCode.INVALID_VALUE
    return ProblemError(Problem(code.status, code.word, detail + more, kept))


def _fault(fault: Fault) -> ProblemMemberView:
    return {
        "code": fault.code,
        "field": fault.field,
        "message": fault.message,
        "remedy": fault.remedy,
    }


def _sentence(message: str, remedy: str) -> str:
    return f"{message}: {remedy}" if remedy else message
