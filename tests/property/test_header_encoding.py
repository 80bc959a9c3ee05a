"""No name, address, scope or key gets a byte into an answer's headers that could end or forge one."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

from envoy.config.core.v3.base_pb2 import HeaderValueOption
from hypothesis import assume, given
from hypothesis import strategies as st

from sidecar.domain.answers import (
    AnswerStyle,
    Decision,
    Headers,
    Limits,
    answer_to,
    denial_headers,
    header_value,
    identity_headers,
    limit_headers,
    problem_body,
)
from sidecar.domain.bucket import Taken
from sidecar.domain.decision_ids import DecisionIds
from sidecar.domain.decisions import Reason
from sidecar.domain.fail_policy import FailPolicy, Fallback
from sidecar.domain.integrations import NAME_LENGTH_MAX, IntegrationError
from sidecar.domain.policy import Evaluation
from sidecar.domain.scopes import Scope
from sidecar.domain.snapshot import CompiledIntegration, Snapshot
from sidecar.services.ext_authz import check_response
from tests.building import FixedStore, make_decider, make_integration, make_key, make_request

NAME = re.compile(r"[a-z0-9-]+")
VALUE = re.compile(r"[\x20-\x7e]*")
NEXT_ID = DecisionIds()

any_text = st.text(max_size=200)
names = st.text(
    st.characters(exclude_categories=("C", "Z")) | st.just(" "), min_size=1, max_size=NAME_LENGTH_MAX
)
"""Printable text in any script, as the name of a record is (see `compiled`)."""
styles = st.builds(AnswerStyle, st.sampled_from((401, 403)), st.booleans(), any_text)
limits = st.none() | st.builds(lambda *figures: Limits(*map(str, figures)), *4 * [st.integers(0, 2**53)])


def assert_safe(headers: Headers) -> None:
    """Each name occurs once, in lower case; each value is printable ASCII."""
    for name, value in headers:
        assert NAME.fullmatch(name)
        assert VALUE.fullmatch(value)
    assert len({name for name, _ in headers}) == len(headers)


def compiled(name: str) -> CompiledIntegration:
    """An integration of this name; the example is dropped when no record may have it."""
    try:
        return Snapshot.compile([make_integration(make_key(), name=name)]).integrations["acme"]
    except IntegrationError:
        assume(False)
        raise


@given(any_text)
def test_header_value__is_printable_ascii_and_can_be_read_back(text: str) -> None:
    """Percent-encoded UTF-8: safe in any header, and decoding gives the text."""
    value = header_value(text)
    assert VALUE.fullmatch(value)
    assert unquote(value) == text


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="%"), max_size=200))
def test_header_value__leaves_plain_text_as_it_is(text: str) -> None:
    """Names in ASCII are readable in logs."""
    assert header_value(text) == text


@given(names, st.text("abcdefgh0123456789", max_size=22))
def test_identity_headers__whatever_the_name(name: str, decision_id: str) -> None:
    """A name in any script, with any sign, cannot break out of its header."""
    integration = compiled(name)
    headers = identity_headers(Evaluation(Reason.OK, integration, integration.credentials[0]), decision_id)
    assert_safe(headers)
    assert unquote(dict(headers)["x-integration-name"]) == name


@given(st.sampled_from(Reason), limits, styles)
def test_answer_headers__whatever_the_reason_and_style(
    reason: Reason, figures: Limits | None, style: AnswerStyle
) -> None:
    """The headers of a denial, and those of an allow to the client, are safe in every combination."""
    assert_safe(denial_headers(reason, NEXT_ID(), figures, style))
    if figures is not None:
        assert_safe(limit_headers(figures, style))


@given(
    st.sampled_from(Reason),
    names,
    st.none() | st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16),
    st.none() | st.builds(Scope, any_text, any_text),
    limits,
    styles,
)
def test_problem_body__is_ascii_json(
    reason: Reason,
    name: str,
    address: bytes | None,
    scope: Scope | None,
    figures: Limits | None,
    style: AnswerStyle,
) -> None:
    """Whatever the reason and its circumstances, the body is one JSON object in ASCII."""
    if reason is Reason.OK:
        return
    body = problem_body(
        reason, Evaluation(reason, compiled(name), None, (), address, scope), NEXT_ID(), figures, style
    )
    assert body.isascii()
    problem = json.loads(body)
    assert {"type", "title", "status", "detail", "reason", "decision_id"} <= set(problem)


@given(
    st.sampled_from(Reason),
    names,
    st.booleans(),
    styles,
    st.none() | st.sampled_from(FailPolicy),
    st.booleans(),
)
def test_check_response__keeps_envoy_s_rules(
    reason: Reason, name: str, is_peeked: bool, style: AnswerStyle, policy: FailPolicy | None, is_grpc: bool
) -> None:
    """
    Only an allow has code 0; a denial has code and denied_response; options replace; sets exclude removals.

    Envoy lets a request through when a denial lacks either half, and removes headers after it sets them.
    """
    integration = compiled(name)
    evaluation = Evaluation(reason, integration, integration.credentials[0], ("x-api-key",))
    if reason.is_credential_fault:
        evaluation = Evaluation(reason)
    taken = Taken(0, 1, 1, 1) if is_peeked or reason is Reason.RATE_LIMITED else None
    fallback = Fallback(policy, 1) if policy is not None else None
    decision = Decision(NEXT_ID(), reason, evaluation, taken, fallback)
    response = check_response(answer_to(decision, style, is_grpc))
    is_allowed = reason is Reason.OK
    assert (response.status.code == 0) == is_allowed
    assert response.WhichOneof("http_response") == ("ok_response" if is_allowed else "denied_response")
    allowed, denial = response.ok_response, response.denied_response
    assert (denial.status.code in {401, 403, 414, 429, 503}) == (not is_allowed)
    removed = set(allowed.headers_to_remove)
    codes = [option.header.value for option in denial.headers if option.header.key == "grpc-status"]
    assert codes == ([str(reason.grpc_code)] if is_grpc and not is_allowed else [])
    assert bool(denial.body) == (not is_allowed and not is_grpc)
    for options in (allowed.headers, allowed.response_headers_to_add, denial.headers):
        assert_safe([(option.header.key, option.header.value) for option in options])
        assert {option.append_action for option in options} <= {HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD}
        assert not removed & {option.header.key for option in options}


@given(
    st.text(st.characters(), max_size=100),
    st.dictionaries(st.sampled_from(("x-api-key", "authorization")), any_text),
)
def test_check_response__whatever_the_request(path: str, headers: dict[str, str]) -> None:
    """Nothing of a request but its address and a scope of ours ever is in an answer."""
    key = make_key()
    decider = make_decider(make_integration(key), store=FixedStore(Taken(1, 1, 0, 1)))
    headers = {"x-api-key": key.api_key, **headers}
    decision = decider.decide(
        make_request(path=path, headers=headers), None, lambda decision, context: None, None
    )
    assert decision is not None
    response = check_response(answer_to(decision, AnswerStyle()))
    for options in (response.ok_response.headers, response.denied_response.headers):
        assert_safe([(option.header.key, option.header.value) for option in options])
    assert key.api_key not in str(response)
