"""Redis servers of tests and proofs: they start beside processes that take their ports."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from loadtest.redis_servers import (
    LOOPBACK,
    PORT_ATTEMPTS,
    RedisServer,
    RedisServerError,
    SentinelGroup,
    free_port,
)


@pytest.mark.parametrize(
    ("options", "offset"), [((), 0), (("--cluster-enabled", "yes"), 10_000)], ids=["port", "cluster bus port"]
)
def test_start__takes_another_port_if_one_is_in_use(
    tmp_path: Path, options: tuple[str, ...], offset: int
) -> None:
    """A listener on the port would answer in the server's place; without its bus port a node ends."""
    taken, free = free_port(), free_port()
    with socket.create_server((LOOPBACK, taken + offset)):
        server = RedisServer(tmp_path, *options, find_port=iter((taken, free)).__next__).start()
        try:
            assert server.port == free
            assert server.client.ping()
        finally:
            server.stop()


def test_start__says_why_it_does_not(tmp_path: Path) -> None:
    """After the last attempt the error quotes the server's own log."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        taken = listener.getsockname()[1]
        ports = iter([taken] * PORT_ATTEMPTS)
        with pytest.raises(RedisServerError, match=rf"{LOOPBACK}:{taken}: bind: Address already in use"):
            RedisServer(tmp_path, find_port=ports.__next__).start()


def test_group__leaves_nothing_running_when_a_server_does_not_start(tmp_path: Path) -> None:
    """The folder of the second server is a file; once it is removed, the group starts in the same folder."""
    obstacle = tmp_path / "data1"
    obstacle.touch()
    with pytest.raises(FileExistsError):
        SentinelGroup(tmp_path)
    obstacle.unlink()
    group = SentinelGroup(tmp_path)
    try:
        assert group.primary is group.servers[0]
        assert len(group.servers) == 3
    finally:
        group.stop()


def test_free_port__is_none_that_the_kernel_gives_away() -> None:
    """Neither it nor its Cluster bus port is taken by a connection before a server binds it."""
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert 1_024 < free_port() < first_ephemeral - 10_000
