"""Rules of scopes, rate limits and the policy on_store_error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sidecar.domain.bucket import US_PER_MINUTE, Quota, QuotaError
from sidecar.domain.effective import raise_in_force
from sidecar.domain.enforcement import Rule
from sidecar.domain.fail_policy import FAIL_POLICIES, FailPolicy
from sidecar.domain.integrations import Integration, LimitRaise
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.outcome import CommandContext, Draft, Notice
from sidecar.domain.lifecycle.shadow import with_shadow
from sidecar.domain.refusals import Code, Problem, raise_for, refusal
from sidecar.domain.scopes import Scope, ScopeCatalogue, ScopeError

RAISE_MAX_US = 90 * 24 * 60 * US_PER_MINUTE
SCOPES_MAX = 200


def add_scopes(record: Integration, command: c.AddScopes, context: CommandContext) -> Draft:
    """Add scopes."""
    scopes = parse_scopes(command.scopes, context.catalogue)
    added = sorted(scopes - record.scopes)
    return Draft(replace(record, scopes=record.scopes | scopes), f"added {_listed(added)}")


def remove_scopes(record: Integration, command: c.RemoveScopes, context: CommandContext) -> Draft:
    """Remove scopes; those of a category that is no longer configured can be removed, too."""
    asked = set(command.scopes)
    removed = sorted(scope for scope in record.scopes if str(scope) in asked)
    parse_scopes(tuple(asked - {str(scope) for scope in removed}), context.catalogue)
    return Draft(replace(record, scopes=record.scopes - set(removed)), f"removed {_listed(removed)}")


def set_limit(record: Integration, command: c.SetRateLimit, context: CommandContext) -> Draft:
    """Set the permanent limit, which ends a temporary raise."""
    quota_of(command.rate_limit_rpm, command.burst)
    notices: tuple[Notice, ...] = ()
    if raise_in_force(record, context.now_us) is not None:
        notices = (Notice("raise_ended", "rate_limit_rpm", "this change ended the temporary raise"),)
    changed = replace(record, rate_limit_rpm=command.rate_limit_rpm, burst=command.burst, limit_raise=None)
    changed = with_shadow(changed, Rule.LIMIT, command.in_shadow)
    said = f"set the limit to {command.rate_limit_rpm} requests per minute"
    return Draft(changed, f"{said}, in shadow" if Rule.LIMIT in changed.shadow else said, notices)


def raise_limit(record: Integration, command: c.RaiseLimit, context: CommandContext) -> Draft:
    """Raise the limit until a time within 90 days; replaces an earlier raise."""
    quota = quota_of(command.rate_limit_rpm, command.burst)
    if command.rate_limit_rpm <= record.rate_limit_rpm or quota.burst < record.quota.burst:
        raise refusal(
            Code.INVALID_VALUE,
            "rate_limit_rpm",
            f"a raise to {command.rate_limit_rpm} requests per minute with a burst of {quota.burst} is not"
            f" above {record.rate_limit_rpm} with {record.quota.burst}",
            "choose a higher limit and no lower burst, or set the permanent limit instead",
        )
    ahead_us = command.until_us - context.now_us
    if not 0 < ahead_us <= RAISE_MAX_US:
        raise refusal(
            Code.INVALID_VALUE,
            "until_us",
            "a temporary raise must end within the next 90 days",
            "choose a time within 90 days; for longer, set the permanent limit",
        )
    limit_raise = LimitRaise(command.rate_limit_rpm, command.burst, command.until_us)
    changed = replace(record, limit_raise=limit_raise)
    return Draft(changed, f"raised the limit to {command.rate_limit_rpm} requests per minute for a time")


def end_raise(record: Integration, command: c.EndLimitRaise, context: CommandContext) -> Draft:
    """End a temporary raise early."""
    if raise_in_force(record, context.now_us) is None:
        raise refusal(
            Code.RAISE_UNKNOWN,
            "",
            f"{record.id!r} has no temporary raise in force",
            f"no change needed: its limit is {record.rate_limit_rpm} requests per minute",
        )
    return Draft(replace(record, limit_raise=None), "ended the temporary raise")


def set_on_store_error(record: Integration, command: c.SetOnStoreError, context: CommandContext) -> Draft:
    """Set the policy while the store is unavailable, or use the configuration's."""
    policy = fail_policy_of(command.on_store_error)
    said = policy.value if policy is not None else "what the configuration says"
    return Draft(replace(record, on_store_error=policy), f"set on_store_error to {said}")


def fail_policy_of(text: str | None) -> FailPolicy | None:
    """
    Parse a policy; None = the policy of the configuration.

    Raises:
        InvalidError: unknown policy.
    """
    if text is None:
        return None
    if text not in FAIL_POLICIES:
        raise refusal(
            Code.INVALID_VALUE,
            "on_store_error",
            f"on_store_error is {text[:80]!a}; it must be one of {', '.join(FAIL_POLICIES)}",
            "send one of them, or null for the sidecar's configuration",
        )
    return FailPolicy(text)


def parse_scopes(texts: Sequence[str], catalogue: ScopeCatalogue) -> frozenset[Scope]:
    """
    Parse scopes of the configured categories.

    Raises:
        InvalidError: every scope that is malformed, unknown or write on a read-only category.
    """
    if len(texts) > SCOPES_MAX:
        raise refusal(
            Code.TOO_MANY,
            "scopes",
            f"{len(texts)} scopes given; at most {SCOPES_MAX} are allowed in one change",
            "name each scope once",
        )
    scopes: set[Scope] = set()
    problems: list[Problem] = []
    for index, text in enumerate(texts):
        try:
            scopes.add(catalogue.parse(text))
        except ScopeError as error:
            remedy = "write 'category:read' or 'category:write' with a configured category"
            message = f"{error}{catalogue.did_you_mean(text)}"
            problems.append(Problem(Code.UNKNOWN_SCOPE, f"scopes[{index}]", message, remedy))
    raise_for(problems)
    return frozenset(scopes)


def quota_of(rate_limit_rpm: int, burst: int | None) -> Quota:
    """
    Return the quota of a limit and a burst.

    Raises:
        InvalidError: one of them is outside its range.
    """
    try:
        quota = Quota.per_minute(rate_limit_rpm)
    except QuotaError as error:
        raise refusal(
            Code.INVALID_VALUE,
            "rate_limit_rpm",
            str(error),
            "choose a limit of 1 to 10,000 requests per minute",
        ) from None
    if burst is None:
        return quota
    try:
        return Quota.per_minute(rate_limit_rpm, burst)
    except QuotaError as error:
        raise refusal(
            Code.INVALID_VALUE, "burst", str(error), "leave it out for a burst equal to the limit"
        ) from None


def _listed(scopes: Sequence[Scope]) -> str:
    return ", ".join(map(str, scopes)) if scopes else "no scope"
