"""Who acts, and when: read in the home partition before a change is planned anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sidecar.domain.accounts import Administrator
from sidecar.domain.audit import ChainHead
from sidecar.stores.registry.redis.keys import HOME
from sidecar.stores.registry.redis.reads import Reader, head_command, learn_time_us
from sidecar.stores.registry.redis.replies import account_of, head_of


@dataclass(frozen=True, slots=True)
class ActingAccounts:
    """
    The accounts that act in some changes, as they are at `epoch`.

    `head` is that of the home chain: what is put on record elsewhere is later than it. `now_us` is the clock
    of the home partition's node, one for all changes, whatever partition they are in.
    """

    epoch: int
    now_us: int
    head: ChainHead
    holders: Mapping[str, Administrator]


async def read_people(
    reader: Reader, ids: Iterable[str], clock_us: Callable[[], int] | None
) -> ActingAccounts:
    """
    Read the accounts *ids*; the epoch first, so that it never promises more than was read.

    *clock_us* replaces the server's clock, in tests.
    """
    names = tuple(dict.fromkeys(ids))
    admins = reader.keys.once(HOME, "admins")
    epoch, time, head, *texts = await reader.ask(
        HOME,
        ("GET", reader.keys.once(HOME, "epoch")),
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
