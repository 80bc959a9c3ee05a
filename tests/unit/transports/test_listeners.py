"""Endpoints: reading them, binding them, taking them over, giving them up."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.transports import listeners
from sidecar.transports.listeners import Listener, bind, parse_endpoint
from sidecar.transports.server import Endpoint, ListenError, TlsFiles


@pytest.fixture(name="opened")
def fixture_opened() -> Iterator[list[Listener]]:
    """Listeners that are closed in the end."""
    opened: list[Listener] = []
    yield opened
    for listener in opened:
        listener.close()


def connect(listener: Listener) -> socket.socket:
    """A client's socket, connected."""
    client = socket.socket(listener.socket.family, socket.SOCK_STREAM)
    client.settimeout(60)
    client.connect(listener.socket.getsockname() if listener.claim is None else listener.endpoint.path)
    return client


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9191", Endpoint(host="127.0.0.1", port=9191)),
        ("localhost:0", Endpoint(host="localhost", port=0)),
        ("[::1]:9191", Endpoint(host="::1", port=9191)),
        ("unix:/run/sidecar.sock", Endpoint(path="/run/sidecar.sock")),
        ("unix:///run/sidecar.sock", Endpoint(path="/run/sidecar.sock")),
        ("unix:@sidecar", Endpoint(path="@sidecar")),
    ],
)
def test_parse_endpoint__reads_each_form(text: str, expected: Endpoint) -> None:
    """TCP by name, IPv4 and IPv6, Unix paths in both spellings, abstract names."""
    assert parse_endpoint(text) == expected


@pytest.mark.parametrize("text", ["127.0.0.1:9191", "[::1]:9191", "unix:/run/sidecar.sock", "unix:@sidecar"])
def test_parse_endpoint__is_the_inverse_of_str(text: str) -> None:
    """An endpoint prints as a person writes it."""
    assert str(parse_endpoint(text)) == text


def test_parse_endpoint__keeps_the_tls_files() -> None:
    """TLS belongs to the endpoint that it was given for."""
    files = TlsFiles(Path("cert.pem"), Path("key.pem"))
    assert parse_endpoint("localhost:1", files).tls == files


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "port is missing"),
        ("localhost", "port is missing"),
        (":9191", "host is missing"),
        ("*:9191", "host is missing"),
        ("::1:9191", "brackets"),
        ("[::g]:9191", "not an IPv6 address"),
        ("[localhost]:9191", "not an IPv6 address"),
        ("localhost:", "not a number"),
        ("localhost:http", "not a number"),
        ("localhost:-1", "not a number"),
        ("localhost:65536", "not a number"),
        ("localhost:٣", "not a number"),
        ("http://localhost:80", "brackets"),
        ("a b:80", "not a host name"),
        ("unix:", "unix:/absolute/path"),
        ("unix:relative", "unix:/absolute/path"),
        ("unix:/", "unix:/absolute/path"),
        ("unix:@", "unix:/absolute/path"),
        ("unix:/a\0b", "unix:/absolute/path"),
    ],
)
def test_parse_endpoint__says_what_is_wrong(text: str, complaint: str) -> None:
    """The error quotes the text and names the part that is wrong."""
    with pytest.raises(ListenError) as caught:
        parse_endpoint(text)
    assert complaint in str(caught.value)
    assert f"'{text}'" in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_bind__a_tcp_port_can_be_connected_to(host: str, opened: list[Listener]) -> None:
    """Port 0 becomes a real one, and a client reaches it without Nagle's delay."""
    listener = bind(Endpoint(host=host))
    opened.append(listener)
    assert listener.endpoint.port > 0
    with connect(listener):
        listener.socket.setblocking(True)
        accepted, _ = listener.socket.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_bind__does_not_block(opened: list[Listener]) -> None:
    """The socket is ready for an event loop."""
    listener = bind(Endpoint(host="127.0.0.1"))
    opened.append(listener)
    with pytest.raises(BlockingIOError):
        listener.socket.accept()


def test_bind__a_successor_shares_the_tcp_port(opened: list[Listener]) -> None:
    """A new process listens on the same port while the old one still does, and goes on alone."""
    first = bind(Endpoint(host="127.0.0.1"))
    second = bind(first.endpoint)
    opened += [first, second]
    assert second.endpoint == first.endpoint
    first.close()
    with connect(second):
        pass


def test_bind__a_port_of_another_program_is_named(opened: list[Listener]) -> None:
    """A port that is not shared cannot be taken; the error says which and what to do."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        endpoint = Endpoint(host="127.0.0.1", port=other.getsockname()[1])
        with pytest.raises(ListenError, match=f"{endpoint}: it is in use") as caught:
            bind(endpoint)
        assert "another address" in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "complaint"),
    [
        (Endpoint(host="192.0.2.1", port=0), "no interface of this machine"),
        (Endpoint(host="no-such-host.invalid", port=1), "does not resolve"),
        (Endpoint(path="/no-such-directory/sidecar.sock"), "does not exist"),
        (Endpoint(path="/dev/null/sidecar.sock"), "not a directory"),
        (Endpoint(path="/proc/sidecar.sock"), "cannot listen on unix:/proc/sidecar.sock"),
    ],
)
def test_bind__says_why_it_cannot(endpoint: Endpoint, complaint: str) -> None:
    """Every failure names the endpoint and the remedy."""
    with pytest.raises(ListenError) as caught:
        bind(endpoint)
    assert complaint in str(caught.value)
    assert str(endpoint) in str(caught.value)


def test_listen_error__an_unknown_fault_keeps_the_systems_words() -> None:
    """What we have no remedy for is passed on, not swallowed."""
    error = listeners.listen_error(Endpoint(host="h", port=1), OSError(5, "Input/output error"))
    assert str(error) == "cannot listen on h:1: the system says: Input/output error"


def test_bind__a_unix_socket_is_for_owner_and_group(tmp_path: Path, opened: list[Listener]) -> None:
    """Mode 0660, whatever the umask; nothing else is left in the directory."""
    path = tmp_path / "s.sock"
    umask = os.umask(0)
    try:
        opened.append(bind(Endpoint(path=str(path))))
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert list(tmp_path.iterdir()) == [path]


def test_bind__a_successor_takes_the_unix_path(tmp_path: Path, opened: list[Listener]) -> None:
    """New clients reach the successor; the old server's end does not take the path away."""
    path = tmp_path / "s.sock"
    first = bind(Endpoint(path=str(path)))
    second = bind(Endpoint(path=str(path)))
    opened += [first, second]
    with connect(second):
        with pytest.raises(BlockingIOError):
            first.socket.accept()
        second.socket.accept()[0].close()
    first.close()
    with connect(second):
        second.socket.accept()[0].close()


def test_close__removes_a_path_that_is_still_ours(tmp_path: Path) -> None:
    """A stopped server leaves no stale socket; closing again does nothing."""
    path = tmp_path / "s.sock"
    listener = bind(Endpoint(path=str(path)))
    listener.close()
    assert not path.exists()
    path.write_text("somebody else's")
    listener.close()
    assert path.exists()


def test_bind__replaces_a_stale_socket(tmp_path: Path, opened: list[Listener]) -> None:
    """What a killed server left behind is no obstacle."""
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    opened.append(bind(Endpoint(path=str(path))))
    with connect(opened[0]):
        pass


def test_bind__refuses_to_replace_another_file(tmp_path: Path) -> None:
    """A path that is no socket is not ours to remove."""
    path = tmp_path / "s.sock"
    path.write_text("precious")
    with pytest.raises(ListenError, match="not a socket"):
        bind(Endpoint(path=str(path)))
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_bind__a_path_takes_107_bytes_and_no_more(opened: list[Listener], tmp_path: Path) -> None:
    """The limit of `sun_path`, counted in bytes."""
    room = listeners.UNIX_PATH_BYTES_MAX - len(os.fsencode(tmp_path)) - 1
    longest = tmp_path / ("é" * (room // 2) + "x" * (room % 2))
    opened.append(bind(Endpoint(path=str(longest))))
    with pytest.raises(ListenError, match="has 108 bytes"):
        bind(Endpoint(path=str(longest) + "y"))


def test_publish__a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    """When the name cannot be taken (a directory sits there), the staged socket is removed."""
    (tmp_path / "s.sock").mkdir()
    staged = tmp_path / "staged"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(staged))
        with pytest.raises(OSError, match="directory"):
            listeners.publish(str(staged), Endpoint(path=str(tmp_path / "s.sock")))
    assert not staged.exists()


def test_bind__an_abstract_name_has_no_file(opened: list[Listener]) -> None:
    """It vanishes with its socket, and two servers cannot have it at once."""
    name = f"@sidecar-test-{os.getpid()}-{os.urandom(4).hex()}"
    listener = bind(Endpoint(path=name))
    assert listener.claim is None
    with pytest.raises(ListenError, match="in use"):
        bind(Endpoint(path=name))
    listener.close()
    opened.append(bind(Endpoint(path=name)))


# Endpoints that one process wants for itself.

ANY_PORT = Endpoint(host="127.0.0.1", port=0)


def alone(endpoint: Endpoint) -> Endpoint:
    """*endpoint*, to be bound only where nobody else listens."""
    return replace(endpoint, is_exclusive=True)


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "path", "abstract"])
@pytest.mark.parametrize("first_is_alone", [True, False])
def test_exclusive__is_refused_while_another_listens(
    tmp_path: Path, opened: list[Listener], kind: str, first_is_alone: bool
) -> None:
    """Whichever kind of endpoint it is, and however the other one was bound; the other one goes on."""
    endpoint = {
        "tcp": ANY_PORT,
        "tcp6": Endpoint(host="::1", port=0),
        "path": Endpoint(path=str(tmp_path / "s.sock")),
        "abstract": Endpoint(path=f"@sidecar-test-{os.getpid()}"),
    }[kind]
    opened.append(bind(alone(endpoint) if first_is_alone else endpoint))
    served = opened[0].endpoint
    assert listeners.is_served(served)
    for _ in range(2):
        with pytest.raises(ListenError, match=r"in use .*--take-over"):
            bind(alone(served))
    with connect(opened[0]):
        assert opened[0].socket.accept()[0].close() is None
    assert [path.name for path in tmp_path.iterdir()] == (["s.sock"] if kind == "path" else [])
    opened.pop().close()
    assert not listeners.is_served(served)
    opened.append(bind(alone(served)))


def is_free(port: int) -> bool:
    """Whether nobody listens on *port* of any address."""
    try:
        bind(alone(Endpoint(host="::", port=port))).close()
    except ListenError:
        return False
    return True


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])
def test_exclusive__a_wildcard_overlaps_every_address(opened: list[Listener], wildcard: str) -> None:
    """Both ways round."""
    # Below the ports of outgoing connections, one of which may take a port between two binds.
    port = next(port for port in range(20_000 + os.getpid() % 10_000, 32_000) if is_free(port))
    opened.append(bind(alone(Endpoint(host="127.0.0.1", port=port))))
    with pytest.raises(ListenError, match="in use"):
        bind(alone(Endpoint(host=wildcard, port=port)))
    opened.pop().close()
    opened.append(bind(alone(Endpoint(host=wildcard, port=port))))
    with pytest.raises(ListenError, match="in use"):
        bind(alone(Endpoint(host="127.0.0.1", port=port)))


@pytest.mark.parametrize("kind", ["tcp", "path"])
def test_exclusive__a_successor_that_may_take_over_does(
    tmp_path: Path, opened: list[Listener], kind: str
) -> None:
    """An exclusive endpoint can be taken over like any other, by whoever was told to."""
    opened.append(bind(alone(ANY_PORT if kind == "tcp" else Endpoint(path=str(tmp_path / "s.sock")))))
    opened.append(bind(replace(opened[0].endpoint, is_exclusive=False)))
    opened[0].close()
    with connect(opened[1]):
        assert opened[1].socket.accept()[0].close() is None


def test_exclusive__a_path_that_a_crash_has_left_is_replaced(tmp_path: Path, opened: list[Listener]) -> None:
    """Nobody listens there any more."""
    endpoint = alone(Endpoint(path=str(tmp_path / "s.sock")))
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(endpoint.path)
        crashed.listen()
    assert not listeners.is_served(endpoint)
    opened.append(bind(endpoint))
    with connect(opened[0]):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["s.sock"]


def test_exclusive__a_port_that_is_held_and_does_not_listen_is_free(opened: list[Listener]) -> None:
    """As a supervisor holds the ports of its workers."""
    with socket.socket() as held:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            held.setsockopt(socket.SOL_SOCKET, option, 1)
        held.bind(("127.0.0.1", 0))
        endpoint = alone(Endpoint(host="127.0.0.1", port=held.getsockname()[1]))
        assert not listeners.is_served(endpoint)
        opened.append(bind(endpoint))


def test_served__an_address_of_another_machine_is_not(tmp_path: Path) -> None:
    """What cannot be bound at all is told by binding."""
    assert not listeners.is_served(Endpoint(host="192.0.2.1", port=1))
    assert not listeners.is_served(Endpoint(path=str(tmp_path / "none" / "s.sock")))
