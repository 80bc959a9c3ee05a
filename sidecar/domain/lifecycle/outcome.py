"""What a command is applied to, and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.domain.canonical import Json
from sidecar.domain.cidr import Address
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle.commands import SealedSecret
from sidecar.domain.roles import Actor
from sidecar.domain.scopes import ScopeCatalogue

ADDRESSES_SEEN_MAX = 100
"""Addresses of one integration that the registry keeps for the lock-out warning."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the administrator should know about a change that was made; `code` is machine-readable."""

    code: str
    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Facts:
    """
    What the registry knows besides the record.

    `is_deleted`: the id belonged to an integration that was deleted. `addresses_seen`: where its requests
    came from in the last hour. `recorded_at_us`: the time on the latest audit entry, so that what is put on
    record is always later than that, whatever the clock does.
    """

    is_deleted: bool = False
    addresses_seen: tuple[Address, ...] = ()
    recorded_at_us: int = 0


NO_FACTS = Facts()


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What a command does: for the store to write as a whole, or not at all.

    `record` is the new record, with the next generation; of a deleted integration its last one, without
    credentials. `before` and `after` hold only what changed, never a secret and never a digest. `claims`
    are credential ids used for the first time: an id is used once in a registry's life, and the store
    refuses the change otherwise. `is_change` False = all was so already: nothing is written.
    """

    record: Integration
    summary: str
    before: Mapping[str, Json]
    after: Mapping[str, Json]
    notices: tuple[Notice, ...] = ()
    claims: tuple[str, ...] = ()
    sealed: tuple[SealedSecret, ...] = ()
    is_deleted: bool = False
    is_change: bool = True


@dataclass(frozen=True, slots=True)
class Draft:
    """What a rule makes of a record, before it gets its next generation."""

    record: Integration
    summary: str
    notices: tuple[Notice, ...] = ()
    claims: tuple[str, ...] = ()
    sealed: tuple[SealedSecret, ...] = ()
    is_deleted: bool = False


@dataclass(frozen=True, slots=True)
class CommandContext:
    """
    The circumstances of one command.

    `now_us` is the clock, for what is still to come; `at_us` is the time to put on record; `generation` is
    that of the record that comes out.
    """

    actor: Actor
    now_us: int
    at_us: int
    generation: int
    facts: Facts
    catalogue: ScopeCatalogue
