"""Whatever is answered: the bytes from a template are the message that protobuf builds directly."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from sidecar.domain.answers import Answer, AnswerStyle, Decision, answer_to, is_grpc_type
from sidecar.domain.bucket import Taken
from sidecar.domain.decision_ids import DecisionIds
from sidecar.domain.decisions import Reason
from sidecar.domain.enforcement import RULE_OF
from sidecar.domain.fail_policy import FailPolicy, Fallback
from sidecar.domain.policy import Evaluation
from sidecar.domain.scopes import Scope
from sidecar.domain.snapshot import Snapshot
from sidecar.services.ext_authz import encode
from sidecar.services.templates import AnswerTemplates, compile_template
from tests.building import make_integration, make_key, make_request

KEYS = (make_key(), make_key())
SNAPSHOT = Snapshot.compile(
    [
        make_integration(KEYS[0], id="acme", name="Acme 100 % GmbH", rate_limit_rpm=1),
        make_integration(
            KEYS[1], id="a-very.long_id" + 50 * "1", name="北京 " + 100 * "0", rate_limit_rpm=10_000
        ),
    ]
)
NEXT_ID = DecisionIds()

styles = st.builds(AnswerStyle, st.sampled_from((401, 403)), st.booleans())
digits = st.integers(0, 20).map(lambda width: 10**width)
figures = st.one_of(st.integers(0, 99), digits, st.integers(0, 2**53))
takens = st.builds(Taken, st.sampled_from((0, 1)), figures, figures, figures)
fallbacks = st.none() | st.builds(Fallback, st.sampled_from(FailPolicy), st.integers(1, 10_000))
scopes = st.none() | st.builds(Scope, st.sampled_from(("orders", "crm")), st.sampled_from(("read", "write")))
addresses = st.none() | st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    """Any decision that a decider could make, and more."""
    reason = draw(st.sampled_from(Reason))
    if reason.is_credential_fault:
        return Decision(NEXT_ID(), reason, Evaluation(reason), None)
    key = draw(st.sampled_from(KEYS))
    credential = SNAPSHOT.credentials[key.credential_id]
    key_headers = draw(st.sampled_from((("x-api-key",), ("authorization",), ())))
    detail = draw(st.sampled_from(("", "The path holds '//'. Send one '/' between segments.")))
    evaluation = Evaluation(
        reason, credential.integration, credential, key_headers, draw(addresses), draw(scopes), detail
    )
    is_taken = reason in (Reason.OK, Reason.RATE_LIMITED) or draw(st.booleans())
    taken = draw(takens) if is_taken else None
    if taken is not None and reason is Reason.RATE_LIMITED:
        wait_us = draw(st.sampled_from((-1, max(1, taken.retry_after_us))))
        taken = Taken(0, taken.remaining, wait_us, taken.reset_at_us)
    would_deny = draw(st.none() | st.sampled_from(tuple(RULE_OF))) if reason is Reason.OK else None
    return Decision(NEXT_ID(), reason, evaluation, taken, draw(fallbacks), would_deny)


def encode_http(answer: Answer) -> bytes:
    """A dialect that is HTTP itself, as forward auth is."""
    headers = [*answer.client_headers, *answer.upstream_headers, ("x-verdict", answer.metadata["verdict"])]
    lines = [f"HTTP/1.1 {answer.status} .", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + answer.body


@cache
def templates(style: AnswerStyle, encode: Callable[[Answer], bytes]) -> AnswerTemplates:
    """One for each style and dialect, kept over all examples, so templates meet many values."""
    return AnswerTemplates(style, encode)


@given(
    styles,
    decisions(),
    st.sampled_from((None, "application/json", "application/grpc+proto")),
    st.sampled_from((encode, encode_http)),
)
def test_render__is_what_the_dialect_encodes(
    style: AnswerStyle, decision: Decision, content_type: str | None, encode: Callable[[Answer], bytes]
) -> None:
    """For every reason, width, style, integration, kind of client and dialect, the same bytes."""
    headers = {} if content_type is None else {"content-type": content_type}
    request = make_request(headers=headers)
    is_grpc = decision.reason is not Reason.OK and is_grpc_type(content_type)
    expected = encode(answer_to(decision, style, is_grpc))
    for _ in range(2):
        assert templates(style, encode).render(decision, request) == expected


texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)


@given(st.lists(st.sampled_from(("id", "left", "wait")) | texts, max_size=10), st.data())
def test_compile__formats_to_what_render_gives(parts: list[str], data: st.DataObject) -> None:
    """For any message and any values of the template's widths, formatting and rendering agree."""
    values = {
        name: data.draw(st.text("0123456789abcXYZ", min_size=1, max_size=22))
        for name in ("id", "left", "wait")
    }

    def render(given: dict[str, str]) -> bytes:
        return b"".join(b"." + given.get(part, part).encode() for part in parts)

    template = compile_template(
        lambda given: render(dict(given)), {name: len(text) for name, text in values.items()}
    )
    assert template.fill(tuple(text.encode() for text in values.values())) == render(values)
