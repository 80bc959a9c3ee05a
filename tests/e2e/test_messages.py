"""Methods, bodies and header sets of every size keep their defined answers."""

from __future__ import annotations

import pytest

from tests.e2e.stack import Stack, upstream_headers


def test_messages__head_is_answered_without_a_body(any_stack: Stack) -> None:
    """HEAD needs the scope that GET needs; allowed or refused, only headers come back."""
    allowed = any_stack.send("HEAD", "/v1/inventory/42", any_stack.people.reader)
    refused = any_stack.send("HEAD", "/v1/inventory/42")
    assert (allowed.status, allowed.body, allowed.one("x-ratelimit-limit")) == (200, b"", "10000")
    assert (refused.status, refused.body, refused.one("x-auth-reason")) == (403, b"", "missing_credential")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_messages__every_method_is_checked(stack: Stack, method: str) -> None:
    """No method slips by, OPTIONS included; each passes where the route table opens it."""
    assert stack.send(method, "/v1/echo/x").status == 403
    answer = stack.send(method, "/v1/echo/x", stack.people.reader)
    assert (answer.status, answer.json()["method"]) == (200, method)


@pytest.mark.parametrize("size", [0, 1, 65_536, 1_048_576])
def test_messages__bodies_arrive_whole(stack: Stack, size: int) -> None:
    """The check looks at the head of a request; its body passes untouched, whatever its size."""
    answer = stack.send("POST", "/v1/echo/x", stack.people.reader, body=b"x" * size)
    assert (answer.status, answer.json()["body_bytes"]) == (200, size)


def test_messages__a_refused_upload_gets_its_answer(stack: Stack) -> None:
    """The denial comes although a body was on its way."""
    answer = stack.send("POST", "/v1/echo/x", body=b"x" * 100_000)
    assert (answer.status, answer.json()["reason"]) == (403, "missing_credential")


def test_messages__fifty_kilobytes_of_headers_pass(any_stack: Stack) -> None:
    """Large requests are no reason to fail, also where the sidecar sees every header of them."""
    padding = [(f"x-padding-{number}", "x" * 890) for number in range(60)]
    answer = any_stack.get("/v1/inventory/42", any_stack.people.reader, padding)
    assert answer.status == 200
    assert sum(name.startswith("x-padding-") for name in upstream_headers(answer)) == len(padding)


def test_messages__many_headers_pass(any_stack: Stack) -> None:
    """Eighty of a client's own leave room for what Envoy and the decision add: Envoy's bound is 100."""
    padding = [(f"x-padding-{number}", "x") for number in range(80)]
    assert any_stack.get("/v1/inventory/42", any_stack.people.reader, padding).status == 200


@pytest.mark.parametrize(("count", "status"), [(95, 500), (110, 431)])
def test_messages__headers_past_envoys_bound_never_reach_the_api(
    stack: Stack, count: int, status: int
) -> None:
    """Past 100 Envoy answers 431; just below, the identity headers no longer fit and it answers 500."""
    padding = [(f"x-padding-{number}", "x") for number in range(count)]
    assert stack.get("/v1/inventory/42", stack.people.reader, padding).status == status


def test_messages__one_enormous_header_passes(any_stack: Stack) -> None:
    """The same in one piece."""
    answer = any_stack.get("/v1/inventory/42", any_stack.people.reader, [("x-padding", "x" * 50_000)])
    assert answer.status == 200


def test_messages__an_enormous_key_is_just_a_wrong_key(any_stack: Stack) -> None:
    """50 KB in x-api-key are refused as any key that is none."""
    answer = any_stack.get("/v1/inventory/42", headers=[("x-api-key", "k" * 50_000)])
    assert (answer.status, answer.json()["reason"]) == (403, "unknown_credential")


def test_messages__an_enormous_path_is_answered(any_stack: Stack) -> None:
    """A path of 50 KB is refused before any route is looked for; a query of that length is none of it."""
    answer = any_stack.get("/v1/nowhere/" + "x" * 50_000, any_stack.people.reader)
    assert (answer.status, answer.json()["reason"]) == (414, "uri_too_long")
    assert "without the query" in answer.json()["detail"]
    assert any_stack.get("/v1/inventory/42?" + "x" * 50_000, any_stack.people.reader).status == 200


def test_messages__more_headers_than_envoy_takes(stack: Stack) -> None:
    """Past its own bound Envoy answers 431, and the sidecar is not even asked."""
    answer = stack.get("/v1/inventory/42", stack.people.reader, [("x-padding", "x" * 64_000)])
    assert answer.status == 431


INJECTIONS = ["%0d%0ax-injected: 1", "a\tb", "\x7f", "a\x80b", "é", '"', "\\", "{placeholder}", "%REQ(HOST)%"]


@pytest.mark.parametrize("value", INJECTIONS)
def test_messages__nothing_a_client_sends_ends_up_as_a_header(any_stack: Stack, value: str) -> None:
    """Odd bytes in the key, in the address chain or in the request id inject nothing anywhere."""
    text = value.encode("utf-8").decode("latin-1")
    answers = [
        any_stack.get("/v1/inventory/42", headers=[("x-api-key", text)]),
        any_stack.get("/v1/inventory/42", headers=[("authorization", f"Bearer {text}")]),
        any_stack.get("/v1/inventory/42", any_stack.people.foreigner, [("x-forwarded-for", text)]),
        any_stack.get("/v1/inventory/42", any_stack.people.foreigner, [("x-request-id", text)]),
    ]
    for answer in answers:
        assert answer.status in (400, 403)
        assert answer.all("x-injected") == []
        assert all(name.isascii() and other.isprintable() for name, other in answer.headers)


def test_messages__headers_of_the_api_do_not_compete(any_stack: Stack) -> None:
    """X-RateLimit-* of the API itself are replaced: a client sees one set, the sidecar's."""
    wishes = [
        ("x-answer-with", "X-RateLimit-Limit=1"),
        ("x-answer-with", "X-RateLimit-Limit=2"),
        ("x-answer-with", "X-RateLimit-Remaining=3"),
        ("x-answer-with", "X-RateLimit-Reset=4"),
    ]
    answer = any_stack.get("/v1/inventory/42", any_stack.people.reader, wishes)
    assert answer.one("x-ratelimit-limit") == "10000"
    assert int(answer.one("x-ratelimit-remaining")) > 4
    assert int(answer.one("x-ratelimit-reset")) > 4


def test_messages__a_failing_api_keeps_the_limits_on_its_answer(stack: Stack) -> None:
    """A client must know its limits also when the API answers 500."""
    answer = stack.get("/v1/inventory/42", stack.people.reader, [("x-answer-status", "500")])
    assert (answer.status, answer.one("x-ratelimit-limit")) == (500, "10000")
