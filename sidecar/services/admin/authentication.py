"""
Authenticates calls by 'Authorization: Bearer <token>' (RFC 6750 2.1), and by nothing else.

All refusals have the same text, and unknown ids cost as much as wrong secrets: tokens cannot be probed.
A valid token is accepted from every source: the limit applies to failed attempts only. A token has 178 random
bits, so refusing valid ones would protect nothing, and would let anyone behind the administrators' proxy lock
them out.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence

from sidecar.domain.accounts import AuthenticationError, authenticate, token_id_of, token_of
from sidecar.domain.bucket import BucketSet, Quota
from sidecar.domain.client_address import network_of
from sidecar.observe.logs import log_event
from sidecar.services.admin.call import Call, Caller
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.problems import ApiCode, Problem, ProblemError, retry_error
from sidecar.stores.embedded import EmbeddedBucketStore
from sidecar.stores.protocols import StoreFault
from sidecar.stores.registry.protocol import RegistryUnavailableError

_LOG = logging.getLogger(__name__)

# RFC 9110 11.1: the scheme's case does not matter. The token is one word (RFC 6750 2.1).
_BEARER = re.compile(r"bearer +([\x21-\x7e]+)", re.IGNORECASE)
_PATH_CHARS_MAX = 200

LOOK_UP_TIMEOUT_S = 3.0
"""Shorter than the 10 s of a registry call: unauthenticated callers share few connections."""

ATTEMPTS_PER_MINUTE = 10
ATTEMPTS_BURST = 10
SOURCES_MAX = 10_000
TABLE_FULL_RETRY_S = 60

_QUOTA = Quota.per_minute(ATTEMPTS_PER_MINUTE, ATTEMPTS_BURST)


class FailedAttempts:
    """
    One bucket per source of failed attempts; at most *sources_max* sources at the same time.

    When the table is full, attempts from further sources count as limited. That delays nobody with a valid
    token, because only failed attempts are counted.
    """

    __slots__ = ("_buckets",)

    def __init__(self, clock_us: Callable[[], int], sources_max: int = SOURCES_MAX) -> None:
        """Read the time from *clock_us*."""
        self._buckets = EmbeddedBucketStore(clock_us, sources_max)

    def note(self, source: str) -> int:
        """
        Record a failed attempt of *source*.

        Returns:
            0 = within the limit; else the seconds until another attempt is within it.
        """
        key = network_of(source)
        taken = self._buckets.take_now(BucketSet(key, 1, (key,), (_QUOTA,)), 1)
        if taken is None or isinstance(taken, StoreFault):
            return TABLE_FULL_RETRY_S
        return 0 if taken.admitted else max(1, -(-taken.retry_after_us // 1_000_000))


class Gate:
    """Authenticates calls by their token."""

    def __init__(self, context: AdminContext) -> None:
        """Look tokens up in the registry of *context*."""
        self._context = context
        self._attempts = FailedAttempts(context.steady_us)

    async def admit(self, call: Call) -> Caller:
        """
        Return who makes *call*.

        Raises:
            ProblemError: 401, or 429 after too many failed attempts from its source.
            RegistryError: the registry is unavailable.
        """
        token_id = ""
        try:
            token = _bearer_token(call.request.headers.getlist("Authorization"))
            token_id = token_id_of(token)
            return await self._caller(token, token_id, call.source)
        except AuthenticationError as error:
            raise self._refused(call, error, token_id) from None

    async def _caller(self, token: str, token_id: str, source: str) -> Caller:
        try:
            async with asyncio.timeout(LOOK_UP_TIMEOUT_S):
                holder = await self._context.registry.token_holder(token_id)
        except TimeoutError:
            raise RegistryUnavailableError(
                f"the look-up of a token took more than {LOOK_UP_TIMEOUT_S:g} s"
            ) from None
        now_us = self._context.clock_us()
        actor = authenticate(token, holder, now_us)
        known = token_of(holder, token_id)
        assert holder is not None and known is not None  # `authenticate` checked both
        self._context.token_uses.note(token_id, source, now_us)
        return Caller(actor, holder.name, known.expires_at_us)

    def _refused(self, call: Call, error: AuthenticationError, token_id: str) -> ProblemError:
        retry_after_s = self._attempts.note(call.source)
        metrics = self._context.metrics
        if retry_after_s:
            # Counted, not logged: a flood must not displace the log lines of earlier attempts.
            metrics.add("sidecar_admin_failed_attempts_total", "429")
            return retry_error(
                ApiCode.TOO_MANY_ATTEMPTS,
                "too many failed attempts from this address; send a valid token, or wait",
                retry_after_s,
            )
        metrics.add("sidecar_admin_failed_attempts_total", "401")
        log_event(
            _LOG,
            logging.WARNING,
            "admin API authentication failed",
            why=error.reason,
            token_id=token_id,  # public; '' = malformed token
            source=call.source,
            request_id=call.request_id,
            method=call.request.method[:20],
            path=call.request.url.path[:_PATH_CHARS_MAX],
        )
        code = ApiCode.UNAUTHENTICATED
        headers = {"WWW-Authenticate": "Bearer"}
        return ProblemError(Problem(code.status, code.text, str(error), headers=headers))


def _bearer_token(headers: Sequence[str]) -> str:
    """
    Return the token of the Authorization header.

    Raises:
        AuthenticationError: no header, several headers, or another scheme.
    """
    if not headers:
        raise AuthenticationError("missing")
    match = _BEARER.fullmatch(headers[0]) if len(headers) == 1 else None
    if match is None:
        raise AuthenticationError("malformed")
    return match[1]
