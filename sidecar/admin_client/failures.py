"""
Errors of calls of the admin API, as lines for a terminal.

The API answers errors as problem documents (RFC 9457) with one entry for each problem; here each becomes a
line with the field and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from typing import Any

TEXT_LENGTH_MAX = 300
PROBLEMS_MAX = 50


class Failure(Enum):
    """The kind of a failed call."""

    REFUSED = "refused"
    """Invalid, forbidden, not found, or no valid token."""
    CONFLICT = "conflict"
    """The change conflicts with the current state: read it again (HTTP 409 and 412)."""
    UNAVAILABLE = "unavailable"
    """No valid answer; see `may_have_happened`."""


class AdminCallError(Exception):
    """
    A call of the admin API failed.

    `lines` are for people, the first one is the summary. `may_have_happened` True = the change may have been
    made. `document` is the problem document, None = the answer was none.
    """

    def __init__(
        self,
        failure: Failure,
        lines: Sequence[str],
        *,
        may_have_happened: bool = False,
        document: dict[str, Any] | None = None,
    ) -> None:
        """Store the arguments."""
        super().__init__("\n".join(lines))
        self.failure = failure
        self.lines = tuple(lines)
        self.may_have_happened = may_have_happened
        self.document = document


_NO_TOKEN = (
    "the token was not accepted",
    "it has expired, was revoked, or belongs to another registry; an administrator can issue another one with"
    " 'sidecar admin token issue'",
)


def failure_of(status: int, content_type: str, body: bytes, server: str) -> AdminCallError:
    """
    The error of an answer with a *status* of 400 or more.

    *server* is named in errors about answers that are not from the admin API.
    """
    document = _document(content_type, body)
    if document is None or "code" not in document:
        return _foreign(status, document, server)
    kind = Failure.CONFLICT if status in (409, 412) else Failure.REFUSED
    if status >= 500:
        kind = Failure.UNAVAILABLE
    lines = [_summary(status, document), *_problem_lines(document)] if status != 401 else list(_NO_TOKEN)
    if status >= 500 and document.get("request_id"):
        lines.append(f"the server's log names it request {_text(document['request_id'])}")
    may_have_happened = document.get("may_have_happened") is True
    return AdminCallError(kind, lines, may_have_happened=may_have_happened, document=document)


def _document(content_type: str, body: bytes) -> dict[str, Any] | None:
    if content_type.partition(";")[0].strip() != "application/problem+json":
        return None
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _foreign(status: int, document: dict[str, Any] | None, server: str) -> AdminCallError:
    """The error of an answer that is not from the admin API: another program, or a sidecar without it."""
    detail = ""
    if document is not None:
        detail = f" ({_text(document.get('detail') or document.get('title') or '')})"
    advice = (
        "this sidecar has no admin API: it needs 'registry: sqlite:FILE' or a shared 'store:' in its"
        " configuration; or --server is another program"
    )
    lines = [f"{server} answered {status}{detail}", advice] if status == 404 else [
        f"{server} answered {status}{detail}, which is not an answer of the admin API; is --server a"
        " sidecar's admin listener?"
    ]  # fmt: skip
    return AdminCallError(Failure.UNAVAILABLE, lines, may_have_happened=status >= 500)


def _summary(status: int, document: dict[str, Any]) -> str:
    problems = _problems(document)
    if len(problems) == 1:
        where = f"{_text(problems[0]['field'])}: " if problems[0].get("field") else ""
        return where + _text(problems[0].get("message") or document.get("detail") or document.get("title"))
    title = _text(document.get("title") or f"HTTP {status}")
    if problems:
        return f"{title}: {len(problems)} problems; nothing was changed"
    return _text(document.get("detail") or title)


def _problem_lines(document: dict[str, Any]) -> list[str]:
    problems = _problems(document)
    if len(problems) == 1:
        return [_text(problems[0].get("remedy"))] if problems[0].get("remedy") else []
    lines = [
        f"{_text(problem.get('field')) or 'request'}: {_text(problem.get('message'))}"
        + (f"; {_text(problem.get('remedy'))}" if problem.get("remedy") else "")
        for problem in problems[:PROBLEMS_MAX]
    ]
    if len(problems) > PROBLEMS_MAX:
        lines.append(f"and {len(problems) - PROBLEMS_MAX} more")
    return lines


def _problems(document: dict[str, Any]) -> list[dict[str, Any]]:
    problems = document.get("problems")
    return (
        [problem for problem in problems if isinstance(problem, dict)] if isinstance(problems, list) else []
    )


def _text(value: object) -> str:
    """*value* on one line, shortened, and without control characters."""

    text = "" if value is None else str(value)
    text = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
    return text if len(text) <= TEXT_LENGTH_MAX else text[: TEXT_LENGTH_MAX - 1] + "…"
