"""
The answer to a decision: status, headers, body and metadata, for every dialect.

A service only encodes an `Answer` in its proxy's messages. Values from a request are always escaped: every
header value is printable ASCII by construction. Sources: RFC 6585 (429), RFC 9110 (Retry-After,
WWW-Authenticate), RFC 9457 (problem+json), draft-ietf-httpapi-ratelimit-headers-10 (RateLimit fields).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, final
from urllib.parse import quote

from sidecar.domain.bucket import Taken
from sidecar.domain.cidr import Address, format_address
from sidecar.domain.credential_sources import IDENTITY_HEADERS
from sidecar.domain.decisions import Reason
from sidecar.domain.fail_policy import FailPolicy, Fallback
from sidecar.domain.policy import Evaluation
from sidecar.domain.values import Value

Headers = list[tuple[str, str]]

PROBLEM_TYPE_PREFIX: Final = "urn:sidecar:problem:"
FALLBACK_HEADER: Final = "x-ratelimit-fallback"
WOULD_DENY_HEADER: Final = "x-auth-would-deny"
_GRPC: Final = "application/grpc"
KEY_FLOOD_RETRY_AFTER_S: Final = "60"
"""The bucket of a source's invalid keys is full again after a minute."""
QUOTA_EXCEEDED_TYPE: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"

_TITLES: Final = {
    Reason.MISSING_CREDENTIAL: "API key missing",
    Reason.UNKNOWN_CREDENTIAL: "API key not accepted",
    Reason.INTEGRATION_SUSPENDED: "Integration suspended",
    Reason.IP_NOT_ALLOWED: "Address not allowed",
    Reason.PATH_REFUSED: "Path refused",
    Reason.URI_TOO_LONG: "Path too long",
    Reason.ROUTE_UNKNOWN: "Route unknown",
    Reason.METHOD_NOT_ALLOWED: "Method not allowed",
    Reason.ROUTE_MISCONFIGURED: "Route misconfigured",
    Reason.SCOPE_MISSING: "Scope missing",
    Reason.RATE_LIMITED: "Quota exceeded",
    Reason.KEY_FLOOD: "Too many invalid API keys",
    Reason.STORE_UNAVAILABLE: "Rate limits unavailable",
    Reason.OVERLOADED: "Overloaded",
}


@final
class Decision(Value):
    """
    The complete record of one decision.

    `taken` None = no bucket was read. `fallback` is set when the shared store was unavailable and
    `on_store_error` decided; `taken` is then the outcome of this sidecar's local bucket. `would_deny` is the
    reason for which an allowed request would be denied if no rule was in shadow; None = it would be allowed,
    or it is denied.
    """

    __slots__ = ("evaluation", "fallback", "id", "reason", "taken", "would_deny")

    def __init__(
        self,
        id: str,
        reason: Reason,
        evaluation: Evaluation,
        taken: Taken | None,
        fallback: Fallback | None = None,
        would_deny: Reason | None = None,
    ) -> None:
        """See the class."""
        self.id = id
        self.reason = reason
        self.evaluation = evaluation
        self.taken = taken
        self.fallback = fallback
        self.would_deny = would_deny


@final
class Limits(Value):
    """
    The values of the rate-limit headers, as text.

    `limit` is in requests per minute; `remaining` in whole tokens; `reset` is the Unix time in seconds,
    rounded up, at which the bucket is full again. `retry_after` is in whole seconds, '' = a request would
    pass now, or never because it costs more than a full burst. `is_share` = the values are of this sidecar's
    share of the limit, because the store is unavailable.
    """

    __slots__ = ("is_share", "limit", "remaining", "reset", "retry_after")

    def __init__(
        self, limit: str, remaining: str, reset: str, retry_after: str = "", is_share: bool = False
    ) -> None:
        """See the class."""
        self.limit = limit
        self.remaining = remaining
        self.reset = reset
        self.retry_after = retry_after
        self.is_share = is_share


def limits_of(decision: Decision) -> Limits | None:
    """Return the values of the rate-limit headers; None = no bucket was read."""
    taken, integration = decision.taken, decision.evaluation.integration
    if taken is None or integration is None:
        return None
    wait = str(retry_after_s(taken.retry_after_us)) if taken.retry_after_us > 0 else ""
    limit_rpm = limit_rpm_of(decision)
    is_share = decision.fallback is not None and decision.fallback.policy is FailPolicy.LOCAL
    return Limits(str(limit_rpm), str(taken.remaining), str(seconds_up(taken.reset_at_us)), wait, is_share)


def limit_rpm_of(decision: Decision) -> int:
    """Return the limit that `taken` is based on, in requests per minute; 0 = no bucket was read."""
    integration, fallback = decision.evaluation.integration, decision.fallback
    if decision.taken is None or integration is None:
        return 0
    return integration.limit_rpm if fallback is None else fallback.limit_rpm


def seconds_up(duration_us: int) -> int:
    """Convert microseconds to whole seconds, rounded up."""
    return -(-duration_us // 1_000_000)


def retry_after_s(retry_after_us: int) -> int:
    """Return `Retry-After` for a wait: whole seconds, rounded up, at least 1 (RFC 9110 10.2.3)."""
    return max(1, seconds_up(retry_after_us))


@dataclass(frozen=True, slots=True)
class AnswerStyle:
    """The configured options of answers."""

    unauthenticated_status: int = 403
    ietf_headers: bool = False
    key_hint: str = "x-api-key: <key> or authorization: Bearer <key>"


@final
class Answer:
    """
    The answer to `decision`, independent of the dialect.

    `status` is the HTTP status. `client_headers` and `body` are for the client; on allow the headers are
    added to the upstream's response and the body is empty. Parts that only some dialects use are computed on
    access.
    """

    __slots__ = ("body", "client_headers", "decision", "status")

    def __init__(
        self, decision: Decision, limits: Limits | None, style: AnswerStyle, is_grpc: bool = False
    ) -> None:
        """
        Assemble the answer; see `answer_to`.

        The denial of a gRPC call (*is_grpc*) has gRPC status headers instead of a body.
        """
        reason, evaluation = decision.reason, decision.evaluation
        self.decision = decision
        self.status = http_status(reason, style)
        self.body = b""
        if reason is Reason.OK:
            headers = limit_headers(limits, style) if limits is not None else []
        else:
            headers = denial_headers(reason, decision.id, limits, style)
        headers += fallback_headers(decision.fallback)
        if decision.would_deny is not None:
            headers.append((WOULD_DENY_HEADER, decision.would_deny.label))
        if is_grpc and reason is not Reason.OK:
            headers += grpc_status_headers(reason, evaluation, limits, style)
        elif reason is not Reason.OK:
            self.body = problem_body(reason, evaluation, decision.id, limits, style)
        self.client_headers = headers

    @property
    def is_allowed(self) -> bool:
        """Whether the proxy may forward the request."""
        return self.decision.reason is Reason.OK

    @property
    def upstream_headers(self) -> Headers:
        """The identity headers of an allowed request; they replace those that the client sent."""
        return identity_headers(self.decision.evaluation, self.decision.id) if self.is_allowed else []

    @property
    def removed_headers(self) -> tuple[str, ...]:
        """The headers with the API key, which the proxy removes from an allowed request."""
        return self.decision.evaluation.key_headers if self.is_allowed else ()

    @property
    def metadata(self) -> dict[str, str]:
        """The fields for the proxy's access log."""
        decision = self.decision
        integration, credential = decision.evaluation.integration, decision.evaluation.credential
        metadata = {
            "decision_id": decision.id,
            "verdict": decision.reason.verdict.value,
            "reason": decision.reason.label,
            "integration": integration.id if integration else "",
            "credential": credential.id if credential else "",
        }
        if decision.fallback is not None:
            metadata["fallback"] = decision.fallback.policy.value
        if decision.would_deny is not None:
            metadata["would_deny"] = decision.would_deny.label
        return metadata


def answer_to(decision: Decision, style: AnswerStyle, is_grpc: bool = False) -> Answer:
    """Return the answer to *decision* in *style*; *is_grpc* = the client's request is a gRPC call."""
    return Answer(decision, limits_of(decision), style, is_grpc)


def is_grpc_type(content_type: str | None) -> bool:
    """Whether a request with this content type is a gRPC call; gRPC-Web is not."""
    return content_type is not None and (content_type == _GRPC or content_type.startswith(f"{_GRPC}+"))


def header_value(text: str) -> str:
    """
    Return *text* as a safe header value: '%' and all but printable ASCII become percent-encoded UTF-8.

    >>> header_value("Café 100%")
    'Caf%C3%A9 100%25'
    """
    return quote(text, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~")


def limit_headers(limits: Limits, style: AnswerStyle) -> Headers:
    """Return the rate-limit headers of an answer to a known integration."""
    headers = [
        ("x-ratelimit-limit", limits.limit),
        ("x-ratelimit-remaining", limits.remaining),
        ("x-ratelimit-reset", limits.reset),
    ]
    if style.ietf_headers:
        wait = f";t={limits.retry_after}" if limits.retry_after else ""
        headers.append(("ratelimit-policy", f'"rpm";q={limits.limit};w=60'))
        headers.append(("ratelimit", f'"rpm";r={limits.remaining}{wait}'))
    return headers


def fallback_headers(fallback: Fallback | None) -> Headers:
    """Return the header that marks an answer without the store, whatever the verdict."""
    return [] if fallback is None else [(FALLBACK_HEADER, fallback.policy.value)]


def identity_headers(evaluation: Evaluation, decision_id: str) -> Headers:
    """Return the headers that identify an allowed caller to the upstream."""
    integration, credential = evaluation.integration, evaluation.credential
    values = (
        integration.id if integration else "",
        header_value(integration.name) if integration else "",
        credential.id if credential else "",
        decision_id,
    )
    return list(zip(IDENTITY_HEADERS, values, strict=True))


def http_status(reason: Reason, style: AnswerStyle) -> int:
    """Return the HTTP status for *reason*."""
    return style.unauthenticated_status if reason.is_credential_fault else reason.http_status


def denial_headers(reason: Reason, decision_id: str, limits: Limits | None, style: AnswerStyle) -> Headers:
    """Return the headers of a denial."""
    headers = limit_headers(limits, style) if limits is not None else []
    if limits is not None and limits.retry_after and reason is Reason.RATE_LIMITED:
        headers.append(("retry-after", limits.retry_after))
    elif reason.http_status == 503:
        headers.append(("retry-after", "1"))
    elif reason is Reason.KEY_FLOOD:
        headers.append(("retry-after", KEY_FLOOD_RETRY_AFTER_S))
    if http_status(reason, style) == 401:
        headers.append(("www-authenticate", 'Bearer realm="api"'))
    headers += [
        ("content-type", "application/problem+json"),
        ("cache-control", "no-store"),
        ("x-decision-id", decision_id),
        ("x-auth-reason", reason.public_label),
    ]
    return headers


def problem_body(
    reason: Reason, evaluation: Evaluation, decision_id: str, limits: Limits | None, style: AnswerStyle
) -> bytes:
    """Return the body of a denial: what is wrong and what to do (RFC 9457)."""
    public = _public(reason)
    limited = reason is Reason.RATE_LIMITED
    problem: dict[str, object] = {
        "type": QUOTA_EXCEEDED_TYPE if limited else PROBLEM_TYPE_PREFIX + public.label,
        "title": _TITLES[public],
        "status": http_status(reason, style),
        "detail": _detail(public, evaluation, limits, style),
        "reason": public.label,
        "decision_id": decision_id,
    }
    if limited:
        problem["violated-policies"] = ["rpm"]
    return json.dumps(problem, ensure_ascii=True).encode()


def grpc_status_headers(
    reason: Reason, evaluation: Evaluation, limits: Limits | None, style: AnswerStyle
) -> Headers:
    """
    Return the headers that replace status and body for a gRPC client.

    A client that retries RESOURCE_EXHAUSTED waits for `grpc-retry-pushback-ms` (gRFC A6).
    """
    public = _public(reason)
    headers = [
        ("grpc-status", str(reason.grpc_code)),
        ("grpc-message", header_value(f"{_TITLES[public]}: {_detail(public, evaluation, limits, style)}")),
    ]
    if reason is Reason.RATE_LIMITED and limits is not None and limits.retry_after:
        headers.append(("grpc-retry-pushback-ms", f"{limits.retry_after}000"))
    return headers


def _public(reason: Reason) -> Reason:
    """Return the reason that the caller sees."""
    return Reason.UNKNOWN_CREDENTIAL if reason.public_label == "unknown_credential" else reason


def _detail(reason: Reason, evaluation: Evaluation, limits: Limits | None, style: AnswerStyle) -> str:
    if evaluation.detail:
        return evaluation.detail
    match reason:
        case Reason.MISSING_CREDENTIAL:
            return f"Send your API key in the header {style.key_hint}."
        case Reason.UNKNOWN_CREDENTIAL:
            return (
                "This API key is not accepted. Check that it is complete and current,"
                " or ask your administrator for a new one."
            )
        case Reason.KEY_FLOOD:
            return (
                "Your address or network has sent too many invalid API keys, and this key is not valid."
                " Valid keys are accepted all the same. Check the key; retry in a minute."
            )
        case Reason.INTEGRATION_SUSPENDED:
            return "An administrator has suspended this integration. Contact the platform's support."
        case Reason.IP_NOT_ALLOWED:
            return address_detail(address_text(evaluation.client_address))
        case Reason.ROUTE_UNKNOWN:
            return (
                "No route of this platform is open to integrations at this path. Check the URL against the"
                " API's documentation, including upper and lower case."
            )
        case Reason.METHOD_NOT_ALLOWED:
            return (
                "This path is open to integrations, but not with this method. Check the method against"
                " the API's documentation."
            )
        case Reason.ROUTE_MISCONFIGURED:
            return (
                "The platform's own configuration of this route is wrong, so no integration can call it."
                " Report it to the platform's support, with the decision_id. Your request is correct."
            )
        case Reason.SCOPE_MISSING:
            return (
                f"This call needs the scope {evaluation.scope}, which this integration does not have."
                " Ask your administrator to add it."
            )
        case Reason.RATE_LIMITED if limits is not None and not limits.retry_after:
            return (
                "This request costs more than a full burst, so waiting does not help."
                " Ask your administrator for a larger burst."
            )
        case Reason.RATE_LIMITED if limits is not None and limits.is_share:
            return (
                f"The shared limits are unavailable; meanwhile {limits.limit} requests per minute are allowed"
                f" here. Retry in {limits.retry_after} s."
            )
        case Reason.RATE_LIMITED if limits is not None:
            return (
                f"{limits.limit} requests per minute are allowed; retry in {limits.retry_after} s."
                " X-RateLimit-Reset is the time at which your whole burst is available again."
            )
        case _:
            return "The request could not be checked. Retry in a second."


def address_detail(address: str) -> str:
    """Return what a caller at *address* (`address_text`), which is not on the allowlist, has to do."""
    return (
        f"Requests from {address} are not on this integration's IP allowlist."
        " Call from a listed address or ask your administrator to add this one."
    )


def address_text(address: Address | None) -> str:
    """Return the packed *address* as callers read it; None = it is unknown."""
    return "an unknown address" if address is None else format_address(address)
