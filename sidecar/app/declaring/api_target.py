"""A running sidecar's admin API as the target of declared changes."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sidecar.app.admin_client.client import AdminClient, path_to
from sidecar.app.admin_client.failures import AdminCallError
from sidecar.app.declaring.target import Declined, Made, Result, TargetError
from sidecar.domain.cidr import parse_cidr
from sidecar.domain.declared import Step
from sidecar.domain.fail_policy import FailPolicy
from sidecar.domain.integrations import Credential, Integration, LimitRaise, Status, Suspension
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.roles import Actor, Role
from sidecar.domain.scopes import Scope, ScopeCatalogue, ScopeCategory, Sensitivity
from sidecar.stores.registry_records import iso_time, microseconds_of

BODY_BYTES_MAX = 900_000
"""Of the changes in one call; the API takes a body of 1 MiB."""
CALL_STEPS_MAX = 250
"""Steps of one call: some seconds of a server that gives its administrators a small share of its time."""
BATCH_EXTRA_S = 30.0
"""Added to the deadline of a call with many changes."""
LIST_MAX = 1_000_000
_UNTOLD_DIGEST = "sha256:" + 64 * "0"

Value = TypeVar("Value")


class ApiTarget:
    """See `ChangeTarget`: the registry behind the admin listener that *client* is connected to."""

    knows_digests = False

    def __init__(self, client: AdminClient) -> None:
        """Make changes with the token of *client*."""
        self._client = client
        self._run_id = secrets.token_hex(8)
        self.calls = 0
        """Calls that carried changes, so far."""

    def identify(self) -> Actor:
        """See `ChangeTarget.identify`; who gave the account its access, only the server knows."""
        told = _called(lambda: self._client.get(path_to("whoami")))
        return Actor(told["administrator"], Role(told["role"]), told["token_id"])

    def catalogue(self) -> ScopeCatalogue:
        """See `ChangeTarget.catalogue`."""
        told = _called(lambda: self._client.get(path_to("scopes")))
        return ScopeCatalogue(
            ScopeCategory(one["name"], one["title"], Sensitivity(one["sensitivity"]), one["is_read_only"])
            for one in told["items"]
        )

    def load(self) -> tuple[Integration, ...]:
        """See `ChangeTarget.load`."""
        listing = _called(lambda: self._client.listed(path_to("integrations"), limit=LIST_MAX))
        return tuple(map(integration_of, listing.items))

    def apply(self, steps: Sequence[Step]) -> tuple[Result, ...]:
        """See `ChangeTarget.apply`: as many calls as the bound of a body takes."""
        return tuple(result for members in _bodies(steps) for result in self._send(members))

    def _send(self, members: Sequence[Mapping[str, Any]]) -> list[Result]:
        self.calls += 1
        key = f"apply-{self._run_id}-{self.calls}"
        answer = _called(
            lambda: self._client.change(
                "POST",
                path_to("changes"),
                {"changes": members},
                idempotency_key=key,
                extra_s=BATCH_EXTRA_S,
            )
        )
        return [_result(one) for one in answer.data["results"]]


def _called(call: Callable[[], Value]) -> Value:
    try:
        return call()
    except AdminCallError as error:
        message = "\n".join(error.lines)
        raise TargetError(message, may_have_happened=error.may_have_happened) from error


def _result(told: Mapping[str, Any]) -> Result:
    problem = told["problem"]
    if problem is None:
        return Made(told["generation"])
    said = [f"{one['message']}: {one['remedy']}" for one in problem.get("problems") or ()]
    return Declined(problem["code"], "\n".join(said) or problem["detail"])


def _bodies(steps: Sequence[Step]) -> Iterator[list[dict[str, Any]]]:
    """The steps as the API takes them, in groups that one body can hold."""
    members: list[dict[str, Any]] = []
    size = 0
    for step in steps:
        member = member_of(step)
        more = len(json.dumps(member)) + 2
        if members and (size + more > BODY_BYTES_MAX or len(members) == CALL_STEPS_MAX):
            yield members
            members, size = [], 0
        members.append(member)
        size += more
    if members:
        yield members


def member_of(step: Step) -> dict[str, Any]:
    """*step* as a member of `/v1/changes`."""
    command = step.command
    member: dict[str, Any] = {
        "action": command.word,
        "integration_id": command.integration_id,
        "expected_generation": step.expected_generation,
        **_FIELDS.get(type(command), _no_fields)(command),
    }
    return {**member, "reason": command.reason} if command.reason else member


def _no_fields(command: Any) -> dict[str, Any]:
    return {}


def _creation(command: c.CreateIntegration) -> dict[str, Any]:
    return {
        "name": command.name,
        "contact": command.contact,
        "owner": command.owner,
        "third_party_manager": command.third_party_manager,
        "scopes": list(command.scopes),
        "rate_limit_rpm": command.rate_limit_rpm,
        "burst": command.burst,
        "allowlist": list(command.allowlist),
        "on_store_error": command.on_store_error,
        "credentials": [_credential(one) for one in command.credentials],
    }


def _details(command: c.EditDetails) -> dict[str, Any]:
    given = {name: getattr(command, name) for name in ("name", "contact", "owner", "third_party_manager")}
    return {name: value for name, value in given.items() if value is not None}


def _credential(credential: c.NewCredential) -> dict[str, Any]:
    return {
        "id": credential.id,
        "digest": credential.digest,
        "expires_at": _moment(credential.expires_at_us),
    }


def _moment(at_us: int | None) -> str | None:
    return iso_time(at_us) if at_us is not None else None


_FIELDS: Mapping[type[c.Command], Callable[[Any], dict[str, Any]]] = {
    c.CreateIntegration: _creation,
    c.EditDetails: _details,
    c.AddScopes: lambda command: {"scopes": list(command.scopes)},
    c.RemoveScopes: lambda command: {"scopes": list(command.scopes)},
    c.SetAllowlist: lambda command: {"entries": list(command.entries)},
    c.SetRateLimit: lambda command: {"rate_limit_rpm": command.rate_limit_rpm, "burst": command.burst},
    c.SetOnStoreError: lambda command: {"policy": command.on_store_error},
    c.IssueCredential: lambda command: {"credential": _credential(command.credential)},
    c.RevokeCredential: lambda command: {"credential_id": command.credential_id},
    c.SetCredentialExpiry: lambda command: {
        "credential_id": command.credential_id,
        "expires_at": _moment(command.expires_at_us),
    },
}
"""What the commands of a plan carry besides the integration's id; those that are not named carry nothing."""


def integration_of(told: Mapping[str, Any]) -> Integration:
    """
    The record that the API tells of, as far as a comparison needs it.

    Digests are not told, nor in which generation what happened; so credentials that a suspension
    invalidated are numbered below it, and all others above.
    """
    limit_raise = told["limit_raise"]
    policy = told["on_store_error"]
    return Integration(
        id=told["id"],
        name=told["name"],
        status=Status(told["status"]),
        scopes=frozenset(Scope(*text.split(":", 1)) for text in told["scopes"]),
        rate_limit_rpm=told["rate_limit_rpm"],
        burst=told["burst"],
        ip_allowlist=tuple(map(parse_cidr, told["ip_allowlist"])),
        credentials=tuple(map(_credential_of, told["credentials"])),
        generation=told["generation"],
        contact=told["contact"],
        owner=told["owner"],
        third_party_manager=told["third_party_manager"],
        is_allowlist_enabled=told["is_allowlist_enabled"],
        limit_raise=_raise_of(limit_raise) if limit_raise is not None else None,
        suspensions=tuple(map(_suspension_of, told["suspensions"])),
        suspended_generation=1,
        on_store_error=FailPolicy(policy) if policy is not None else None,
    )


def _credential_of(told: Mapping[str, Any]) -> Credential:
    return Credential(
        told["id"],
        _UNTOLD_DIGEST,
        microseconds_of(told["expires_at"]) if told["expires_at"] is not None else None,
        issued_generation=0 if told["state"] == "invalidated" else 1,
        replaced_by=told["replaced_by"] or "",
    )


def _raise_of(told: Mapping[str, Any]) -> LimitRaise:
    return LimitRaise(told["rate_limit_rpm"], told["burst"], microseconds_of(told["until"]))


def _suspension_of(told: Mapping[str, Any]) -> Suspension:
    at_us, since_us = microseconds_of(told["at"]), microseconds_of(told["since"])
    return Suspension(told["by"], at_us, told["reason"], 1, since_us)
