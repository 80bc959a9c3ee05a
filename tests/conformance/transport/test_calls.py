"""
Calls by a real grpcio client, over TCP and over a Unix socket: the interop cases a server of ours can serve.

Source of the cases: grpc/doc/interop-test-descriptions.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import grpc.aio
import pytest

from sidecar.transports.server import Endpoint, TransportLimits
from tests.waiting import PATIENCE_S

from .conftest import run
from .probe import SECRET, path
from .served import Served, Servers, address, channel

LARGE_REQUEST_BYTES = 271_828
LARGE_RESPONSE_BYTES = 314_159


@pytest.fixture(scope="module", params=["tcp", "unix"])
def endpoint(request: pytest.FixtureRequest, served: Served) -> Endpoint:
    """Each kind of endpoint in turn."""
    return served.unix if request.param == "unix" else served.tcp


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> Iterator[grpc.Channel]:
    """A channel to it."""
    with channel(endpoint) as opened:
        yield opened


def call(client: grpc.Channel, method: str, request: bytes = b"", **options: object) -> bytes:
    """One unary call with a deadline."""
    return client.unary_unary(path(method))(request, **{"timeout": PATIENCE_S, **options})


def failure(client: grpc.Channel, method: str, request: bytes = b"", **options: object) -> grpc.RpcError:
    """The error of one unary call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call(client, method, request, **options)
    return caught.value


def test_unary__empty(client: grpc.Channel) -> None:
    """empty_unary: an empty message comes back as one, not as none."""
    assert call(client, "Echo", b"") == b""


def test_unary__large(servers: Servers) -> None:
    """large_unary: 271,828 bytes in and 314,159 out pass, once the limits allow such messages."""
    served = servers.start(TransportLimits(message_bytes_max=LARGE_REQUEST_BYTES))
    request = LARGE_RESPONSE_BYTES.to_bytes(4, "big") + bytes(LARGE_REQUEST_BYTES - 4)
    with channel(served.tcp) as client:
        for _ in range(3):
            assert call(client, "Size", request) == bytes(LARGE_RESPONSE_BYTES)
        assert call(client, "Echo", request) == request


def test_unary__too_large(client: grpc.Channel) -> None:
    """A message over the limit is RESOURCE_EXHAUSTED, and the connection goes on serving."""
    limit = TransportLimits().message_bytes_max
    assert call(client, "Echo", bytes(limit)) == bytes(limit)
    assert failure(client, "Echo", bytes(limit + 1)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call(client, "Echo", b"still here") == b"still here"


def test_unary__every_byte_value(client: grpc.Channel) -> None:
    """Messages are bytes: nothing in them is read, cut or recoded on the way."""
    request = bytes(range(256)) * 3
    assert call(client, "Echo", request) == request


@pytest.mark.parametrize(
    ("sent", "name", "seen"),
    [
        ([("x-one", "1")], "x-one", b"1"),
        ([("x-two", "a"), ("x-other", "b"), ("x-two", "c")], "x-two", b"a,c"),
        ([("x-bin-ary", "a,b")], "x-bin-ary", b"a,b"),
        ([("x-data-bin", b"\0\xff\n")], "x-data-bin", b"AP8K"),
        ([], "x-absent", b"(absent)"),
        ([("x-empty", "")], "x-empty", b""),
    ],
    ids=["one", "repeated", "comma", "binary", "absent", "empty"],
)
def test_metadata__reaches_the_handler(
    client: grpc.Channel, sent: list[tuple[str, str | bytes]], name: str, seen: bytes
) -> None:
    """custom_metadata: handlers see what callers send; repeats are joined, binary stays base64."""
    assert call(client, "Metadata", name.encode(), metadata=sent) == seen


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_status__code_and_message(client: grpc.Channel, code: grpc.StatusCode) -> None:
    """status_code_and_message: each code and its detail arrive as the handler gave them."""
    error = failure(client, "Fail", bytes((code.value[0],)) + b"test status message")
    assert (error.code(), error.details()) == (code, "test status message")


def test_status__special_message(client: grpc.Channel) -> None:
    """special_status_message: white space, percent signs and characters of every plane survive the wire."""
    detail = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈 100% %41\t\n"
    assert failure(client, "Fail", b"\x02" + detail.encode()).details() == detail


def test_status__exception_text_stays_inside(client: grpc.Channel) -> None:
    """A handler that crashes is UNKNOWN, and no word of its exception leaves the process."""
    error = failure(client, "Crash")
    assert error.code() is grpc.StatusCode.UNKNOWN
    assert SECRET not in f"{error.details()}{error.debug_error_string()}{error.trailing_metadata()}"
    assert "ValueError" not in str(error.details())


@pytest.mark.parametrize("name", ["/probe.Probe/Nothing", "/nobody.Service/Echo"])
def test_status__unimplemented(client: grpc.Channel, name: str) -> None:
    """unimplemented_method and unimplemented_service: both are UNIMPLEMENTED."""
    with pytest.raises(grpc.RpcError) as caught:
        client.unary_unary(name)(b"", timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_unary__second_ending_is_ignored(client: grpc.Channel) -> None:
    """A handler that ends its call more than once has answered with the first ending."""
    assert call(client, "Twice") == b"first"


def test_stream__messages_in_order(client: grpc.Channel) -> None:
    """A streaming method's messages arrive whole, in order, and the end is OK."""
    answers = client.unary_stream(path("Count"))(b"500", timeout=PATIENCE_S)
    assert list(answers) == [str(number).encode() for number in range(500)]


def test_stream__failure_after_messages(client: grpc.Channel) -> None:
    """What was sent before a failure arrives, then the status; nothing after it."""
    answers = client.unary_stream(path("FailAfterTwo"))(b"", timeout=PATIENCE_S)
    assert [next(answers), next(answers)] == [b"one", b"two"]
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.DATA_LOSS, "no more")


def test_soak__one_channel(client: grpc.Channel, served: Served) -> None:
    """rpc_soak: 300 calls one after another on one channel, each with its own answer, each counted."""
    before = served.calls(0)
    echo = client.unary_unary(path("Echo"))
    for number in range(300):
        assert echo(str(number).encode(), timeout=PATIENCE_S) == str(number).encode()
    assert served.calls(0) == before + 300


def test_aio__unary_and_stream(served: Served, endpoint: Endpoint) -> None:
    """The asyncio client of grpcio gets the same answers, many at a time."""

    async def calls() -> tuple[list[bytes], list[bytes]]:
        async with grpc.aio.insecure_channel(address(endpoint)) as client:
            echo = client.unary_unary(path("Echo"))
            unary = [
                await each for each in [echo(bytes((number,)), timeout=PATIENCE_S) for number in range(64)]
            ]
            answers = client.unary_stream(path("Count"))(b"5", timeout=PATIENCE_S)
            return unary, [message async for message in answers]

    # grpc.aio has one poller for a process: client and reference server share the server's loop.
    unary, stream = served.loop.run(calls()) if served.transport == "reference" else run(calls())
    assert unary == [bytes((number,)) for number in range(64)]
    assert stream == [b"0", b"1", b"2", b"3", b"4"]
