"""Where workers listen, ports that stay theirs, and the life of listeners of every kind."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.process.config import load_config
from sidecar.process.listeners import HeldPorts, Listeners, worker_endpoint
from sidecar.process.settings import DECIDING_KINDS, LISTEN_KINDS, SUPERVISED_KINDS
from sidecar.transports.listeners import bind, parse_endpoint
from sidecar.transports.server import Endpoint, ListenError

ANY_PORT = Endpoint(host="127.0.0.1", port=0)


@pytest.fixture
def ports() -> Iterator[HeldPorts]:
    """Held ports, given up afterwards."""
    held = HeldPorts()
    yield held
    held.close()


@pytest.mark.parametrize(
    ("configured", "own"),
    [
        ("127.0.0.1:9191", "127.0.0.1:9191"),
        ("[::1]:9191", "[::1]:9191"),
        ("unix:/run/sidecar/grpc.sock", "unix:/run/sidecar/grpc.7.sock"),
        ("unix:/run/side.car/grpc", "unix:/run/side.car/grpc.7"),
        ("unix:/run/.hidden", "unix:/run/.hidden.7"),
        ("unix:@sidecar", "unix:@sidecar.7"),
        ("unix:@sidecar.sock", "unix:@sidecar.7.sock"),
        ("unix:@a/b.sock", "unix:@a/b.7.sock"),
    ],
)
def test_worker_endpoint__unix_paths_are_numbered(configured: str, own: str) -> None:
    """A TCP port is shared, a Unix path has one owner; its suffix stays last."""
    assert str(worker_endpoint(parse_endpoint(configured), 7)) == own


def test_worker_endpoint__numbers_never_meet() -> None:
    """No two workers, and no two paths that differ, get one path."""
    paths = [Endpoint(path=path) for path in ("/r/a", "/r/a.sock", "/r/b.sock", "@a", "@a.sock")]
    own = [worker_endpoint(path, index) for path in paths for index in range(12)]
    assert len(set(own)) == len(own)


def test_hold__resolves_a_free_port_once(ports: HeldPorts) -> None:
    """Port 0 is one port for all workers, also for those that are started later."""
    (first,) = ports.hold([ANY_PORT])
    (again,) = ports.hold([ANY_PORT])
    assert first.port != 0
    assert again == first


def test_hold__two_free_ports_are_two(ports: HeldPorts) -> None:
    """Two items that ask for any port do not get the same one."""
    first, second = ports.hold([ANY_PORT, ANY_PORT])
    assert first.port != second.port


def test_hold__leaves_unix_paths_alone(ports: HeldPorts) -> None:
    """Each worker binds its own."""
    endpoint = Endpoint(path="/run/sidecar/x.sock")
    assert ports.hold([endpoint]) == (endpoint,)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_hold__workers_listen_beside_it_and_get_every_connection(ports: HeldPorts, host: str) -> None:
    """The socket that holds the port never listens, so the kernel gives it no connection."""
    (endpoint,) = ports.hold([Endpoint(host=host, port=0)])
    listeners = [bind(endpoint) for _ in range(2)]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    clients = [socket.socket(family) for _ in range(20)]
    try:
        for client in clients:
            client.settimeout(60)
            client.connect((host, endpoint.port))
        accepted = sum(_accept_all(listener.socket) for listener in listeners)
        assert accepted == len(clients)
    finally:
        for each in (*clients, *listeners):
            each.close()


def _accept_all(listening: socket.socket) -> int:
    accepted = 0
    while True:
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            return accepted
        accepted += 1


def test_hold__keeps_others_out(ports: HeldPorts) -> None:
    """While no worker listens yet, or no more, nobody else gets the port."""
    (endpoint,) = ports.hold([ANY_PORT])
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind((endpoint.host, endpoint.port))


def test_hold__says_what_is_wrong(ports: HeldPorts) -> None:
    """A port that another program has is named, with what to do."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port}: it is in use"):
            ports.hold([Endpoint(host="127.0.0.1", port=port)])


def test_keep_only__gives_up_the_others(ports: HeldPorts) -> None:
    """After a rolling restart to another address the old port is free."""
    (old,) = ports.hold([ANY_PORT])
    fixed = Endpoint(host="127.0.0.2", port=0)
    (new,) = ports.hold([fixed])
    ports.keep_only([fixed])
    with socket.socket() as stranger:
        stranger.bind((old.host, old.port))
    assert ports.hold([fixed]) == (new,)


class NotedServer:
    """A server of any protocol, which notes what is asked of it."""

    def __init__(self, kind: str, notes: list[str]) -> None:
        """Note in *notes*; only one that decides has a call to cut off."""
        self._kind, self._notes = kind, notes

    async def start(self) -> tuple[Endpoint, ...]:
        """See `ListeningServer`."""
        self._notes.append(f"start {self._kind}")
        return (Endpoint(path=f"@{self._kind}"),)

    def reload_tls(self) -> bool:
        """See `ListeningServer`."""
        self._notes.append(f"reload {self._kind}")
        return True

    async def drain(self, timeout_s: float) -> bool:
        """See `ListeningServer`."""
        self._notes.append(f"drain {self._kind} in {timeout_s:g} s")
        return self._kind not in DECIDING_KINDS


async def test_listeners__treat_every_kind_alike(tmp_path: Path) -> None:
    """What decides starts last; a kind starts once, reloads, and drains once; an empty kind has no server."""
    file = tmp_path / "sidecar.yaml"
    file.write_text("listen: {grpc: 'unix:@g', admin: 'unix:@a', metrics: []}")
    notes: list[str] = []
    servers = {kind: NotedServer(kind, notes) for kind in LISTEN_KINDS}

    listeners = Listeners(load_config(file, {}), servers)
    await listeners.start(SUPERVISED_KINDS)
    assert listeners.served["admin"] and not listeners.served["grpc"]
    await listeners.start()
    listeners.reload_tls()
    assert set(listeners.served) == set(LISTEN_KINDS)
    assert not await listeners.drain(9.0, DECIDING_KINDS)
    assert await listeners.drain(2.0)
    assert not any(listeners.served.values())
    assert notes == [
        "start admin", "start grpc", "reload grpc", "reload admin", "drain grpc in 9 s", "drain admin in 2 s",
    ]  # fmt: skip
