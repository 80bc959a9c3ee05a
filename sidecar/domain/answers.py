"""
Status, headers and body of an answer, the same for every proxy dialect.

Values that came from a request never get in here unescaped: every header value is printable ASCII
by construction. Sources: RFC 6585 (429), RFC 9110 (Retry-After, WWW-Authenticate), RFC 9457
(problem+json), draft-ietf-httpapi-ratelimit-headers-10 (RateLimit fields).
"""

from __future__ import annotations

import json
from typing import NamedTuple
from urllib.parse import quote

from sidecar.domain.cidr import Address, format_address
from sidecar.domain.credential_sources import IDENTITY_HEADERS
from sidecar.domain.decisions import Reason
from sidecar.domain.fail_policy import Fallback
from sidecar.domain.policy import Evaluation

Headers = list[tuple[str, str]]

PROBLEM_TYPE_PREFIX = "urn:sidecar:problem:"
FALLBACK_HEADER = "x-ratelimit-fallback"
QUOTA_EXCEEDED_TYPE = "https://iana.org/assignments/http-problem-types#quota-exceeded"

_TITLES = {
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
    Reason.STORE_UNAVAILABLE: "Rate limits unavailable",
    Reason.OVERLOADED: "Overloaded",
}


class Limits(NamedTuple):
    """
    The figures of the rate-limit headers, as text.

    `limit` requests per minute; `remaining` whole tokens; `reset` Unix seconds, rounded up, at which
    the bucket is full again; `retry_after` whole seconds until a request passes, '' where there is no
    such wait: one would pass now, or none ever will because it costs more than a full burst. `is_share` =
    they are those of this sidecar's share of the limit, because the store cannot be asked.
    """

    limit: str
    remaining: str
    reset: str
    retry_after: str = ""
    is_share: bool = False


class AnswerStyle(NamedTuple):
    """How a configuration wants its answers."""

    unauthenticated_status: int = 403
    ietf_headers: bool = False
    key_hint: str = "x-api-key: <key> or authorization: Bearer <key>"


def header_value(text: str) -> str:
    """
    *text* as a safe header value: anything but printable ASCII, and '%', is percent-encoded UTF-8.

    >>> header_value("Café 100%")
    'Caf%C3%A9 100%25'
    """
    return quote(text, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~")


def limit_headers(limits: Limits, style: AnswerStyle) -> Headers:
    """The rate-limit headers of any answer to a known integration."""
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
    """The mark of an answer that was given without the store, whatever the verdict."""
    return [] if fallback is None else [(FALLBACK_HEADER, fallback.policy.value)]


def identity_headers(evaluation: Evaluation, decision_id: str) -> Headers:
    """What the upstream learns about an allowed caller."""
    integration, credential = evaluation.integration, evaluation.credential
    values = (
        integration.id if integration else "",
        header_value(integration.name) if integration else "",
        credential.id if credential else "",
        decision_id,
    )
    return list(zip(IDENTITY_HEADERS, values, strict=True))


def http_status(reason: Reason, style: AnswerStyle) -> int:
    """The HTTP status of an answer for this reason."""
    return style.unauthenticated_status if reason.is_credential_fault else reason.http_status


def denial_headers(reason: Reason, decision_id: str, limits: Limits | None, style: AnswerStyle) -> Headers:
    """The headers of a denial, without the body's."""
    headers = limit_headers(limits, style) if limits is not None else []
    if limits is not None and limits.retry_after and reason is Reason.RATE_LIMITED:
        headers.append(("retry-after", limits.retry_after))
    elif reason.http_status == 503:
        headers.append(("retry-after", "1"))
    if http_status(reason, style) == 401:
        headers.append(("www-authenticate", 'Bearer realm="api"'))
    headers += [
        ("content-type", "application/problem+json"),
        ("cache-control", "no-store"),
        ("x-decision-id", decision_id),
        ("x-auth-reason", reason.public_word),
    ]
    return headers


def problem_body(
    reason: Reason, evaluation: Evaluation, decision_id: str, limits: Limits | None, style: AnswerStyle
) -> bytes:
    """The body of a denial: what happened and what to do about it (RFC 9457)."""
    public = _public(reason)
    limited = reason is Reason.RATE_LIMITED
    problem: dict[str, object] = {
        "type": QUOTA_EXCEEDED_TYPE if limited else PROBLEM_TYPE_PREFIX + public.word,
        "title": _TITLES[public],
        "status": http_status(reason, style),
        "detail": _detail(public, evaluation, limits, style),
        "reason": public.word,
        "decision_id": decision_id,
    }
    if limited:
        problem["violated-policies"] = ["rpm"]
    return json.dumps(problem, ensure_ascii=True).encode()


def grpc_status_headers(
    reason: Reason, evaluation: Evaluation, limits: Limits | None, style: AnswerStyle
) -> Headers:
    """
    What tells a gRPC client of a denial, in the place of status and body.

    A client that tries RESOURCE_EXHAUSTED again waits for as long as `grpc-retry-pushback-ms` says (gRFC A6).
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
    """The reason whose words the caller is told."""
    return Reason.UNKNOWN_CREDENTIAL if reason.public_word == "unknown_credential" else reason


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
        case Reason.INTEGRATION_SUSPENDED:
            return "An administrator has suspended this integration. Contact the platform's support."
        case Reason.IP_NOT_ALLOWED:
            return (
                f"Requests from {_address_text(evaluation.client_address)} are not on this integration's"
                " IP allowlist. Call from a listed address or ask your administrator to add this one."
            )
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


def _address_text(address: Address | None) -> str:
    return "an unknown address" if address is None else format_address(address)
