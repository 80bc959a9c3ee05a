"""Inputs and results of commands."""

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
"""Maximum number of addresses per integration for the lock-out warning."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning about a change that was made; `code` is machine-readable."""

    code: str
    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Facts:
    """
    Data of the registry besides the record.

    `is_deleted`: the id belonged to an integration that was deleted. `addresses_seen`: where its requests
    came from in the last hour. `recorded_at_us`: the time on the latest audit entry, so that new times
    are always later, even if the clock goes back.
    """

    is_deleted: bool = False
    addresses_seen: tuple[Address, ...] = ()
    recorded_at_us: int = 0


NO_FACTS = Facts()


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    The result of a command, which the store writes atomically.

    `record` is the new record, with the next generation; of a deleted integration its last one, without
    credentials. `before` and `after` hold only what changed, never a secret and never a digest. `claims`
    are credential ids used for the first time: an id is used once in a registry's life, and the store
    refuses the change otherwise. `is_change` False = no change was needed: nothing is written.
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
    """The record that a rule returns, before it gets its next generation."""

    record: Integration
    summary: str
    notices: tuple[Notice, ...] = ()
    claims: tuple[str, ...] = ()
    sealed: tuple[SealedSecret, ...] = ()
    is_deleted: bool = False


@dataclass(frozen=True, slots=True)
class CommandContext:
    """
    The author, the time and the generation of one command.

    `now_us` is the clock, for checks of future times; `at_us` is the time to record; `generation` is that of
    the new record.
    """

    actor: Actor
    now_us: int
    at_us: int
    generation: int
    facts: Facts
    catalogue: ScopeCatalogue
