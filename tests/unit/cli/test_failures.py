"""Problem documents as lines for a person: what was wrong, where, what to do; bounded, and never obeyed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.admin_client.failures import PROBLEMS_MAX, TEXT_LENGTH_MAX, AdminCallError, Failure, failure_of

PROBLEM = "application/problem+json; charset=utf-8"


def failed(status: int, **document: Any) -> AdminCallError:
    """The error of a problem document."""
    whole = {"code": "some_code", "title": "Some code", "status": status, "detail": "d", **document}
    return failure_of(status, PROBLEM, json.dumps(whole).encode(), "http://server")


def fault(field: str, message: str, remedy: str = "") -> dict[str, str]:
    """One thing that was wrong."""
    return {"code": "c", "field": field, "message": message, "remedy": remedy}


def test_failure__one_problem_is_message_and_remedy() -> None:
    """The field comes first where there is one."""
    assert failed(422, problems=[fault("burst", "too large", "name less")]).lines == (
        "burst: too large",
        "name less",
    )
    assert failed(403, problems=[fault("", "not you")]).lines == ("not you",)


def test_failure__several_problems_stand_below_each_other() -> None:
    """Each with its place, up to a bound."""
    few = failed(422, problems=[fault("entries[0]", "a", "x"), fault("", "b")])
    assert few.lines == ("Some code: 2 problems; nothing was changed", "entries[0]: a; x", "request: b")
    many = failed(422, problems=[fault(f"f{n}", "m") for n in range(PROBLEMS_MAX + 7)])
    assert (len(many.lines), many.lines[-1]) == (PROBLEMS_MAX + 2, "and 7 more")


@pytest.mark.parametrize(
    ("status", "failure"),
    [(400, Failure.REFUSED), (401, Failure.REFUSED), (403, Failure.REFUSED), (404, Failure.REFUSED),
     (409, Failure.CONFLICT), (412, Failure.CONFLICT), (422, Failure.REFUSED), (429, Failure.REFUSED),
     (500, Failure.UNAVAILABLE), (503, Failure.UNAVAILABLE), (504, Failure.UNAVAILABLE)],
)  # fmt: skip
def test_failure__its_kind_follows_from_the_status(status: int, failure: Failure) -> None:
    """So does the exit code."""
    assert failed(status).failure is failure


def test_failure__a_fault_of_the_server_names_the_request() -> None:
    """So that anyone who runs it finds its log line; and whether the change may have happened is kept."""
    error = failed(503, request_id="r-1", may_have_happened=True)
    assert error.lines == ("d", "the server's log names it request r-1")
    assert error.may_have_happened
    assert not failed(503, request_id="r-1", may_have_happened=False).may_have_happened


def test_failure__a_token_that_is_not_accepted() -> None:
    """The remedy is for a person: an option, not a header."""
    assert failed(401).lines[0] == "the token was not accepted"
    assert "sidecar admin token issue" in failed(401).lines[1]


@pytest.mark.parametrize(
    ("status", "content_type", "body", "reported"),
    [
        (404, "text/html", b"<html>", "this sidecar has no admin API"),
        (404, PROBLEM, b'{"detail": "Known here: /metrics."}', "(Known here: /metrics.)"),
        (502, "text/html", b"Bad gateway", "is not an answer of the admin API"),
        (500, PROBLEM, b"[" * 100_000, "is not an answer of the admin API"),
        (500, PROBLEM, b"\xff", "is not an answer of the admin API"),
        (500, PROBLEM, b"[]", "is not an answer of the admin API"),
    ],
)  # fmt: skip
def test_failure__an_answer_of_another_program(
    status: int, content_type: str, body: bytes, reported: str
) -> None:
    """What is no problem document of the admin API is said to be none; nothing of it is taken for advice."""
    error = failure_of(status, content_type, body, "http://server")
    assert reported in "\n".join(error.lines)
    assert error.lines[0].startswith(f"http://server answered {status}")
    assert error.may_have_happened is (status >= 500)


@pytest.mark.parametrize("problems", [None, "x", [1, "x"], {}])
def test_failure__problems_of_another_shape(problems: object) -> None:
    """An unusual document is still shown by its detail."""
    assert failed(422, problems=problems).lines == ("d",)


def test_failure__texts_are_bounded_and_plain() -> None:
    """A server cannot fill the screen, nor move the cursor on it."""
    (line,) = failed(422, detail="\x1b[2J" + "x" * 10_000).lines
    assert len(line) == TEXT_LENGTH_MAX
    assert line.startswith("\N{REPLACEMENT CHARACTER}[2J")
