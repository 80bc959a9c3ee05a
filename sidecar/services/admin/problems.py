"""
Problem documents (RFC 9457) for all errors of the API.

One table maps errors of the domain and of the registry to statuses. `code` is a word of
`domain.refusals.Code` or of `ApiCode`; both lists are closed, and published words never change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NotRequired

from starlette.responses import Response
from typing_extensions import TypedDict

from sidecar.domain.refusals import GenerationConflictError, RefusalKind, RefusedError, with_remedy
from sidecar.stores.registry.protocol import (
    RegistryDamagedError,
    RegistryError,
    RegistryOverloadedError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_S = 1
"""After a failure of the store, which is retried within a second."""

KIND_STATUS: Mapping[RefusalKind, int] = {
    RefusalKind.INVALID: 422,
    RefusalKind.FORBIDDEN: 403,
    RefusalKind.NOT_FOUND: 404,
    RefusalKind.CONFLICT: 409,
}


class ApiCode(Enum):
    """Errors besides the refusals of the domain: the word, and its status."""

    INVALID_HEADER = ("invalid_header", 400)
    UNAUTHENTICATED = ("unauthenticated", 401)
    NOT_FOUND = ("not_found", 404)
    DECISION_LOG_OFF = ("decision_log_off", 404)
    METHOD_NOT_ALLOWED = ("method_not_allowed", 405)
    NOT_ACCEPTABLE = ("not_acceptable", 406)
    BODY_TOO_SLOW = ("body_too_slow", 408)
    PLAN_CHANGED = ("plan_changed", 409)
    WEBHOOK_SECRETS_OFF = ("webhook_secrets_off", 409)
    BODY_TOO_LARGE = ("body_too_large", 413)
    UNSUPPORTED_MEDIA_TYPE = ("unsupported_media_type", 415)
    INVALID_FILE = ("invalid_file", 422)
    INVALID_JSON = ("invalid_json", 422)
    INVALID_VALUE = ("invalid_value", 422)
    TOO_MANY_ROWS = ("too_many_rows", 422)
    TOO_MANY_ATTEMPTS = ("too_many_attempts", 429)
    INTERNAL = ("internal", 500)
    REGISTRY_DAMAGED = ("registry_damaged", 500)
    DECISION_LOG_FAILED = ("decision_log_failed", 503)
    OVERLOADED = ("overloaded", 503)
    STORE_UNAVAILABLE = ("store_unavailable", 503)
    TIMEOUT = ("timeout", 504)

    def __init__(self, text: str, status: int) -> None:
        """Store the row as attributes."""
        self.text = text
        self.status = status


FIELD_NAMES: Mapping[str, str] = {
    "expires_at_us": "expires_at",
    "until_us": "until",
    "overlap_us": "overlap",
    "expected_generation": "If-Match",
    "idempotency_key": "Idempotency-Key",
    "administrator_id": "id",
}
"""Names of command fields that are different in the API."""


class ProblemMemberView(TypedDict):
    """One error: what is wrong, where, and what to do."""

    code: str
    field: str
    message: str
    remedy: str


class ProblemView(TypedDict):
    """
    A problem document (RFC 9457).

    `may_have_happened` is set for failed changes: true = the change may have been made; check, or repeat it
    with the same idempotency key.
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
    """One error, as `domain.refusals.Problem`; `code` is the word in answers."""

    code: str
    field: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Problem:
    """
    An error answer.

    `may_have_happened` None = not about a change; True = the change may have been made: only the registry, or
    a repeat with the same idempotency key, tells.
    """

    status: int
    code: str
    detail: str
    faults: tuple[Fault, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    may_have_happened: bool | None = None


class ProblemError(Exception):
    """Ends a call; `problem` is the answer."""

    def __init__(self, problem: Problem) -> None:
        """Answer the call with *problem*."""
        super().__init__(problem.detail)
        self.problem = problem


def problem_error(code: ApiCode, detail: str, remedy: str = "", where: str = "") -> ProblemError:
    """Return the error for one fault at *where*, with its *remedy*."""
    faults = (Fault(code.text, where, detail, remedy),) if remedy else ()
    return ProblemError(Problem(code.status, code.text, with_remedy(detail, remedy), faults))


def retry_error(code: ApiCode, detail: str, retry_after_s: int = RETRY_AFTER_S) -> ProblemError:
    """Return the error of a call that may be retried after *retry_after_s*."""
    headers = {"Retry-After": str(retry_after_s)}
    return ProblemError(Problem(code.status, code.text, detail, headers=headers))


def refused(error: RefusedError, names: Mapping[str, str] = FIELD_NAMES, prefix: str = "") -> Problem:
    """Convert a refusal of the domain; fields get the API's *names* and a *prefix*."""
    status = 412 if isinstance(error, GenerationConflictError) else KIND_STATUS[error.kind]
    faults = tuple(
        Fault(problem.code.text, prefix + api_name(problem.field, names), problem.message, problem.remedy)
        for problem in error.problems
    )
    headers = {"ETag": f'"{error.actual}"'} if isinstance(error, GenerationConflictError) else {}
    return Problem(status, error.code.text, str(error), faults, headers)


def api_name(name: str, names: Mapping[str, str] = FIELD_NAMES) -> str:
    """
    Return the API's name of the domain's field *name*; an index is kept.

    >>> api_name("expires_at_us"), api_name("scopes[3]")
    ('expires_at', 'scopes[3]')
    """
    head, bracket, rest = name.partition("[")
    return names.get(head, head) + bracket + rest


def store_failed(error: RegistryError, is_change: bool) -> Problem:
    """Convert an error of the registry."""
    code = ApiCode.STORE_UNAVAILABLE
    if isinstance(error, RegistryTimeoutError):
        code = ApiCode.TIMEOUT
    elif isinstance(error, RegistryOverloadedError):
        code = ApiCode.OVERLOADED
    elif isinstance(error, RegistryDamagedError):
        code = ApiCode.REGISTRY_DAMAGED
    headers = {"Retry-After": str(RETRY_AFTER_S)} if code.status == 503 else {}
    may_have_happened = error.may_have_happened if is_change else None
    detail = str(error)
    if may_have_happened is False and isinstance(error, RegistryUnavailableError):
        detail += ". Nothing was changed; retry when that is corrected"
    return Problem(code.status, code.text, detail, (), headers, may_have_happened)


def problem_of(error: BaseException, is_change: bool) -> Problem | None:
    """Convert *error* to an answer; None = an internal error."""
    if isinstance(error, ProblemError):
        return error.problem
    if isinstance(error, RefusedError):
        return refused(error)
    if isinstance(error, RegistryError):
        return store_failed(error, is_change)
    return None


def own_fault(is_change: bool) -> Problem:
    """Return the answer to an internal error, without internals."""
    return Problem(
        ApiCode.INTERNAL.status,
        ApiCode.INTERNAL.text,
        "internal error; the sidecar's log has the details under this request id",
        may_have_happened=True if is_change else None,
    )


def document(problem: Problem, request_id: str) -> ProblemView:
    """Return *problem* as a document."""
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
    """Return *problem* as an HTTP answer."""
    body = json.dumps(document(problem, request_id)).encode() + b"\n"
    return Response(body, problem.status, dict(problem.headers), PROBLEM_JSON)


def invalid(faults: Iterable[Fault]) -> ProblemError:
    """Return the error for faults in a request."""
    kept = tuple(faults)
    detail = "; ".join(f"{fault.field}: {with_remedy(fault.message, fault.remedy)}" for fault in kept[:3])
    more = f"; and {len(kept) - 3} more" if len(kept) > 3 else ""
    code = ApiCode.INVALID_VALUE
    return ProblemError(Problem(code.status, code.text, detail + more, kept))


def _fault(fault: Fault) -> ProblemMemberView:
    return {"code": fault.code, "field": fault.field, "message": fault.message, "remedy": fault.remedy}
