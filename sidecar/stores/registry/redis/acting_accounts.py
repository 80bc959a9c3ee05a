"""Reading the acting accounts and the time from partition 0, before a change is planned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sidecar.domain.accounts import Administrator
from sidecar.domain.audit import ChainHead
from sidecar.stores.registry.redis.keys import HOME
from sidecar.stores.registry.redis.reads import Reader, head_command, learn_time_us
from sidecar.stores.registry.redis.replies import head_of
from sidecar.stores.registry.results import account_of


@dataclass(frozen=True, slots=True)
class ActingAccounts:
    """
    The acting accounts of some changes at `epoch`.

    `head` is the head of the chain of partition 0: entries of other chains must be later. `now_us` is the
    clock of the node of partition 0, which times all changes of all partitions.
    """

    epoch: int
    now_us: int
    head: ChainHead
    holders: Mapping[str, Administrator]


async def read_accounts(
    reader: Reader, ids: Iterable[str], clock_us: Callable[[], int] | None
) -> ActingAccounts:
    """
    Read the accounts *ids*; the epoch first, so that it is never newer than the accounts.

    *clock_us* replaces the server's clock in tests.
    """
    names = tuple(dict.fromkeys(ids))
    admins = reader.keys.named(HOME, "admins")
    epoch, time, head, *texts = await reader.ask(
        HOME,
        ("GET", reader.keys.named(HOME, "epoch")),
        ("TIME",),
        head_command(reader.keys, HOME),
        *(("HGET", admins, name) for name in names),
    )
    return ActingAccounts(
        epoch=int(epoch or 0),
        now_us=clock_us() if clock_us is not None else learn_time_us(reader, time),
        head=head_of(HOME, head),
        holders={name: account_of(text) for name, text in zip(names, texts, strict=True) if text is not None},
    )
