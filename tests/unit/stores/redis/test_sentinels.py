"""What a Sentinel says, read from its replies as real ones give them in each phase of a failover."""

from __future__ import annotations

import pytest

from sidecar.stores.redis.connect import HandshakeError
from sidecar.stores.redis.sentinels import SentinelView, read_view
from sidecar.stores.redis.urls import Address

OLD, NEW = Address("127.0.0.1", 7_000), Address("127.0.0.1", 7_001)


def fields(**words: str) -> list[bytes]:
    """A reply of names and values; '_' stands for '-'."""
    return [word.encode() for name, value in words.items() for word in (name.replace("_", "-"), value)]


def master(flags: str = "master", epoch: int = 3) -> list[bytes]:
    """SENTINEL MASTER of the old primary."""
    return fields(
        ip=OLD.host,
        port=str(OLD.port),
        flags=flags,
        role_reported_time="2500",
        config_epoch=str(epoch),
        num_other_sentinels="2",
    )


def replica(flags: str = "slave", role: str = "slave", link: str = "ok", of: Address = OLD) -> list[bytes]:
    """One of SENTINEL REPLICAS."""
    return fields(
        flags=flags,
        role_reported=role,
        master_link_status=link,
        master_host=of.host,
        master_port=str(of.port),
        slave_priority="100",
    )


def named(address: Address) -> list[bytes]:
    """SENTINEL GET-MASTER-ADDR-BY-NAME."""
    return [address.host.encode(), str(address.port).encode()]


def test_view__in_quiet_times() -> None:
    """Both replicas may be promoted, and nothing is going on."""
    view = read_view(master(), named(OLD), [replica(), replica()])
    assert view == SentinelView(OLD, 3, False, False, 2, 0, 2.5, 3)


def test_view__of_a_leader_that_has_promoted_a_replica_and_does_not_know_yet() -> None:
    """The promoted one counts: a change that only the other one has is lost."""
    flags = "master,failover_in_progress,force_failover"
    view = read_view(master(flags), named(OLD), [replica("slave,promoted"), replica()])
    assert (view.is_failing_over, view.is_switching, view.replicas) == (True, False, 2)


def test_view__of_a_leader_that_knows_the_successor() -> None:
    """It keeps the former primary's entry until all replicas follow, and names the new one."""
    flags = "master,failover_in_progress"
    view = read_view(master(flags, 4), named(NEW), [replica("slave,promoted", "master"), replica()])
    assert (view.primary, view.epoch, view.is_failing_over, view.is_switching) == (NEW, 4, False, True)
    assert (view.replicas, view.strays) == (0, 1)


@pytest.mark.parametrize(
    "unfit",
    [
        replica("slave,s_down"),
        replica("s_down,slave,disconnected"),
        replica(link="err"),
        replica(role="master"),
        replica(of=NEW),
    ],
)
def test_view__a_replica_that_would_not_be_promoted_is_not_waited_for(unfit: list[bytes]) -> None:
    """One that is down, resynchronizing, or follows somebody else."""
    assert read_view(master(), named(OLD), [replica(), unfit]).replicas == 1


@pytest.mark.parametrize("reply", [None, b"OK", [b"only"], []])
def test_view__anything_else_is_refused(reply: object) -> None:
    """No Sentinel, or not of this service."""
    with pytest.raises(HandshakeError):
        read_view(reply, named(OLD), [])
    with pytest.raises(HandshakeError):
        read_view(master(), None, [])
