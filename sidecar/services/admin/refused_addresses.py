"""The endpoint for the callers that the allowlist of an integration refused, from the decision log."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from typing_extensions import TypedDict

from sidecar.domain.cidr import AddressError, parse_address
from sidecar.domain.decisions import Reason
from sidecar.domain.roles import Action
from sidecar.services.admin import bodies as b
from sidecar.services.admin.answers import list_answer
from sidecar.services.admin.call import Call
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.decision_log import QUERY_TIMEOUT_S
from sidecar.services.admin.endpoint import Endpoint
from sidecar.services.admin.reading import INTEGRATION, known_integration
from sidecar.services.admin.times import format_time
from sidecar.services.admin.views import RefusedCallerView, refused_caller_view
from sidecar.stores.decisions.filters import Value, timestamp
from sidecar.stores.registry.protocol import REFUSED_WINDOW_US, RefusedCaller

ADDRESSES_MAX = 100
"""Callers in one answer, the latest ones."""

_QUERY = """
SELECT client_address, credential, epoch_us(min(time)), epoch_us(max(time)),
    count(*) FILTER (reason = $reason), count(*) FILTER (would_deny = $reason)
FROM decisions
WHERE integration = $integration AND time >= $since AND (reason = $reason OR would_deny = $reason)
GROUP BY client_address, credential
ORDER BY max(time) DESC, client_address, credential
LIMIT $limit
"""


class RefusedAddressView(RefusedCallerView):
    """
    A caller that the allowlist refused, or would have refused were it not in shadow mode.

    `refused_at` is the time of the latest refusal.
    """

    first_refused_at: str
    refusals: int
    shadow_refusals: int


class RefusedAddressListView(TypedDict):
    """The latest callers that the allowlist refused since `since`; `is_whole` false = there are more."""

    items: list[RefusedAddressView]
    since: str
    is_whole: bool


async def list_refused_addresses(
    context: AdminContext, call: Call, query: b.RefusedAddressQuery, body: Any
) -> Response:
    """Answer with the callers that the allowlist of one integration refused."""
    log = context.require_decision_log()
    record = await known_integration(context, call.path("integration_id"))
    since_us = query.since if query.since is not None else context.clock_us() - REFUSED_WINDOW_US
    parameters: dict[str, Value] = {
        "integration": record.id,
        "since": timestamp(since_us),
        "reason": Reason.IP_NOT_ALLOWED.label,
        "limit": ADDRESSES_MAX + 1,
    }
    rows = await log.run(lambda reader: reader.sql(_QUERY, parameters, QUERY_TIMEOUT_S, from_us=since_us))
    items: list[RefusedAddressView] = []
    for address, credential, first_us, last_us, refusals, shadow_refusals in rows[:ADDRESSES_MAX]:
        caller = RefusedCaller(record.id, credential, _packed(address), last_us)
        items.append(
            {
                **refused_caller_view(record, caller),
                "first_refused_at": format_time(first_us),
                "refusals": refusals,
                "shadow_refusals": shadow_refusals,
            }
        )
    return await list_answer(items, {"since": format_time(since_us), "is_whole": len(rows) <= ADDRESSES_MAX})


def _packed(address: str) -> bytes:
    """The address of a row; b'' = unknown."""
    try:
        return parse_address(address)
    except AddressError:
        return b""


ENDPOINTS = (
    Endpoint(
        "list_refused_addresses", "GET", INTEGRATION + "/refused-addresses", "decisions",
        "List the callers that the allowlist refused",
        "From the decision log of the last 30 days, or since a time, with the allowlist entries that would"
        " admit each.",
        list_refused_addresses, frozenset({Action.READ_DECISIONS}), b.RefusedAddressQuery,
        answer=RefusedAddressListView,
    ),
)  # fmt: skip
