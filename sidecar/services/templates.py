"""
Templates of serialized answers, so that a decision costs one formatting call.

The real encoder (protobuf, JSON) renders each template twice: with zeros for all variables, then with a
different digit for each variable. The bytes that differ are the positions of the variables, and the
difference identifies the variable. Lengths inside the message stay correct because a template is only used
for values of the same width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Final, final

from sidecar.domain.answers import (
    Answer,
    AnswerStyle,
    Decision,
    Limits,
    address_detail,
    address_text,
    is_grpc_type,
    limits_of,
    retry_after_s,
    seconds_up,
)
from sidecar.domain.decision_ids import DECISION_ID_LENGTH
from sidecar.domain.decisions import Reason
from sidecar.domain.policy import AccessRequest, Evaluation

_OK: Final = Reason.OK
_IP_NOT_ALLOWED: Final = Reason.IP_NOT_ALLOWED
_SCOPE_MISSING: Final = Reason.SCOPE_MISSING

VARIABLES_MAX: Final = 9
TEMPLATES_PER_INTEGRATION_MAX: Final = 256
_CHANGED: Final = re.compile(rb"([^\x00])\1*", re.DOTALL)


@final
class Template:
    """A serialized message with gaps, and the variable of each gap."""

    __slots__ = ("_format", "_variables")

    def __init__(self, constants: Sequence[bytes], variables: Sequence[int]) -> None:
        """Put the variables with the numbers *variables* between the *constants*, which are one more."""
        self._format = b"%b".join(constant.replace(b"%", b"%%") for constant in constants)
        # itemgetter wants an item; formatting takes a single value, or a tuple of any other number.
        self._variables = itemgetter(*variables) if variables else itemgetter(slice(0))

    def fill(self, values: tuple[bytes, ...]) -> bytes:
        """Return the message with these *values* of the variables."""
        message: bytes = self._format % self._variables(values)
        return message


class AnswerTemplates:
    """Renders the answers of one dialect from templates, which are compiled at first use."""

    def __init__(self, style: AnswerStyle, encode: Callable[[Answer], bytes]) -> None:
        """Render answers in *style* with *encode*, which must be deterministic."""
        self._style = style
        self._encode = encode
        self._unknown_caller: dict[tuple[Reason, str, bool], Template] = {}

    def render(self, decision: Decision, request: AccessRequest) -> bytes:
        """Return the message that answers *request* with *decision*."""
        reason, evaluation, taken = decision.reason, decision.evaluation, decision.taken
        is_grpc = reason is not _OK and is_grpc_type(request.header("content-type"))
        id = decision.id.encode()
        integration = evaluation.integration
        if integration is None:
            return self._unknown_caller_template(decision, is_grpc).fill((id,))
        remaining = reset = wait = address = b""
        if reason is _IP_NOT_ALLOWED and not evaluation.detail:
            address = address_text(evaluation.client_address).encode()
        if taken is not None:
            remaining, reset = b"%d" % taken.remaining, b"%d" % seconds_up(taken.reset_at_us)
            wait = b"%d" % retry_after_s(taken.retry_after_us) if taken.retry_after_us > 0 else b""
        fallback = decision.fallback
        # The constant parts of the message and the widths of its variables. The registry's objects
        # outlive the dialect and its style, so this object is part of the key.
        key = (
            self,
            reason.label,
            evaluation.credential,
            evaluation.key_headers,
            evaluation.scope if reason is _SCOPE_MISSING else evaluation.detail,
            len(remaining),
            len(reset),
            len(wait),
            len(address),
            fallback and (fallback.policy, fallback.limit_rpm),
            decision.would_deny,
            is_grpc,
        )
        template: Template | None = integration.fragments.get(key)
        if template is None:
            values = {"remaining": remaining, "reset": reset, "wait": wait, "address": address}
            template = self._compile(decision, {name: len(value) for name, value in values.items()}, is_grpc)
            if len(integration.fragments) >= TEMPLATES_PER_INTEGRATION_MAX:
                integration.fragments.clear()
            integration.fragments[key] = template
        return template.fill((id, remaining, reset, wait, address))

    def _unknown_caller_template(self, decision: Decision, is_grpc: bool) -> Template:
        key = decision.reason, decision.evaluation.detail, is_grpc
        template = self._unknown_caller.get(key)
        if template is None:
            template = self._unknown_caller[key] = self._compile(decision, {}, is_grpc)
        return template

    def _compile(self, decision: Decision, widths: Mapping[str, int], is_grpc: bool) -> Template:
        """Compile the template of *decision* for values of these *widths* beside its id."""
        own, evaluation = limits_of(decision), decision.evaluation

        def render(values: Mapping[str, str]) -> bytes:
            limits = own and Limits(
                own.limit, values["remaining"], values["reset"], values["wait"], own.is_share
            )
            example = Decision(
                values["id"],
                decision.reason,
                _at(evaluation, values["address"]) if widths.get("address") else evaluation,
                decision.taken,
                decision.fallback,
                decision.would_deny,
            )
            return self._encode(Answer(example, limits, self._style, is_grpc))

        return compile_template(render, {"id": DECISION_ID_LENGTH, **widths})


def _at(evaluation: Evaluation, address: str) -> Evaluation:
    """Return *evaluation*, which refuses the client's address, with *address* in its text."""
    return Evaluation(
        evaluation.reason,
        evaluation.integration,
        evaluation.credential,
        evaluation.key_headers,
        detail=address_detail(address),
    )


def compile_template(render: Callable[[Mapping[str, str]], bytes], widths: Mapping[str, int]) -> Template:
    """
    Compile the message of *render* for variables of these *widths* (ASCII characters).

    `Template.fill` takes values in the order of *widths*; variables of width 0 are not in the message.

    Raises:
        ValueError: *render* changes a variable's width, for example by escaping; or there are more than
            nine variables.
    """
    names = [name for name, width in widths.items() if width]
    if len(names) > VARIABLES_MAX:
        raise ValueError(f"a template has {len(names)} variables; at most {VARIABLES_MAX} are possible")
    base = render({name: "0" * width for name, width in widths.items()})
    fills = {name: str(number) * widths[name] for number, name in enumerate(names, 1)}
    other = render({**dict.fromkeys(widths, ""), **fills})
    spans = _spans(base, other, names, widths)
    starts = [0, *(stop for _, stop, _ in spans)]
    stops = [*(start for start, _, _ in spans), len(base)]
    numbers = {name: number for number, name in enumerate(widths)}
    constants = [base[start:stop] for start, stop in zip(starts, stops, strict=True)]
    return Template(constants, [numbers[name] for _, _, name in spans])


def _spans(
    base: bytes, other: bytes, names: list[str], widths: Mapping[str, int]
) -> list[tuple[int, int, str]]:
    """Return (start, end, variable) for each difference between *base* and *other*."""
    if len(base) != len(other):
        raise ValueError(f"the length of the message depends on {', '.join(names)}")
    changed = (int.from_bytes(base) ^ int.from_bytes(other)).to_bytes(len(base))
    spans = []
    for match in _CHANGED.finditer(changed):
        number = match[0][0]  # '0' ^ '3' = 3
        name = names[number - 1] if number <= len(names) else None
        if name is None or len(match[0]) != widths[name]:
            raise ValueError(f"the message does not contain {name or ', '.join(names)} unchanged")
        spans.append((*match.span(), name))
    return spans
