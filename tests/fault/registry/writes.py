"""Every way in which the registry is written to, by name: what comes before, and the write itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeAlias

from sidecar.domain.administrators import (
    AdminCommand,
    Bootstrap,
    CreateAdministrator,
    EraseDecisions,
    ExportDecisions,
    IssueToken,
    RemoveAdministrator,
    RevokeToken,
    SetRole,
)
from sidecar.domain.changes import AdminRequest
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.roles import Role
from sidecar.stores.registry.protocol import CredentialUse, Registry
from tests.administration import ANN, ID, NOW_US, create, examples, preparation, request, set_up
from tests.building import ManualClock
from tests.conformance.registry.registry_harness import CONTEXT, found, new_token

Write: TypeAlias = Callable[[Registry], Awaitable[object]]

KEYED = {"idempotency_key": "key-1", "fingerprint": "print-1"}


async def nothing(registry: Registry) -> None:
    """No preparation."""


async def people(registry: Registry) -> None:
    """Put the administrators in."""
    await found(registry, ManualClock())


async def prepare(kind: type[c.Command], registry: Registry) -> None:
    """Administrators, and what the example of *kind* needs."""
    await people(registry)
    for actor, command in preparation(kind):
        await registry.apply(request(command, actor))


async def change(kind: type[c.Command], registry: Registry) -> None:
    """The example of *kind*, under an idempotency key."""
    await registry.apply(request(examples()[kind], **KEYED))


async def administer(command: AdminCommand, registry: Registry) -> None:
    """One change of the administrators by ann."""
    await registry.administer(AdminRequest(command, ANN, CONTEXT))


async def bootstrap(registry: Registry) -> None:
    """The first administrator."""
    first = Bootstrap(administrator_id="ann", name="Ann", token=new_token("tokenann", ManualClock()))
    await registry.administer(AdminRequest(first, None, CONTEXT))


async def many(registry: Registry) -> None:
    """Five changes in one transaction, one of them refused."""
    ids = ("a", "b", "a", "c", "d")
    await registry.apply_many([request(create(id)) for id in ids])


async def prepare_uses(registry: Registry) -> None:
    """An integration whose credential can be used."""
    await people(registry)
    await registry.apply(request(set_up()))


async def uses(registry: Registry) -> None:
    """Uses of a credential."""
    await registry.record_uses(
        [CredentialUse("live", ID, bytes([10, 0, 0, n]), NOW_US + n) for n in range(3)]
    )


async def announce(registry: Registry) -> None:
    """A heartbeat."""
    await registry.announce("sidecar-1", await registry.revision())


_ADMIN_COMMANDS: tuple[AdminCommand, ...] = (
    CreateAdministrator(
        administrator_id="dan", name="Dan", role=Role.ADMIN, token=new_token("tokendan", ManualClock())
    ),
    SetRole(administrator_id="bob", role=Role.AUDITOR),
    RemoveAdministrator(administrator_id="bob"),
    IssueToken(administrator_id="bob", token=new_token("second", ManualClock())),
    RevokeToken(administrator_id="bob", token_id="tokenbob"),
    ExportDecisions(administrator_id="ann", filters={}, rows=1),
    EraseDecisions(administrator_id="ann", filters={"integration": "acme"}, rows=1, reason="privacy"),
)

WRITES: Mapping[str, tuple[Write, Write]] = {
    **{kind.action_name: (partial(prepare, kind), partial(change, kind)) for kind in c.COMMANDS},
    **{command.action_name: (people, partial(administer, command)) for command in _ADMIN_COMMANDS},
    "admin.bootstrap": (nothing, bootstrap),
    "apply_many": (people, many),
    "record_uses": (prepare_uses, uses),
    "announce": (people, announce),
}
"""Name to preparation and write."""
