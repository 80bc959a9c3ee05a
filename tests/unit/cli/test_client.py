"""The client of the admin API: deadlines, bounds, lost answers, and whom it trusts with a token."""

from __future__ import annotations

import json
import socket

import pytest

from sidecar.admin_client import client as module
from sidecar.admin_client.address import ServerAddress, ServerAddressError, parse_server
from sidecar.admin_client.client import ATTEMPTS_MAX, AdminClient, path_to
from sidecar.admin_client.failures import AdminCallError, Failure

from .scripted import CUT, SILENCE, LosingRelay, Scripted, answer
from .served import ServedApi

TOKEN = "sca_test"
OK = answer(200, b'{"is_fine": true}')


def client_of(url: str, timeout_s: float = 30.0, token: str = TOKEN) -> AdminClient:
    """A client of a scripted server."""
    return AdminClient(parse_server(url), token, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("text", "base_url", "socket_path"),
    [
        ("http://127.0.0.1:9193", "http://127.0.0.1:9193", ""),
        ("127.0.0.1:9193", "http://127.0.0.1:9193", ""),
        ("localhost:9193/", "http://localhost:9193", ""),
        ("http://[::1]:9193", "http://[::1]:9193", ""),
        ("https://Sidecar.example:9193", "https://sidecar.example:9193", ""),
        ("https://sidecar.example", "https://sidecar.example", ""),
        ("unix:/run/sidecar/admin.sock", "http://sidecar", "/run/sidecar/admin.sock"),
        ("unix:///run/admin.sock", "http://sidecar", "/run/admin.sock"),
    ],
)
def test_parse_server__reads_what_people_write(text: str, base_url: str, socket_path: str) -> None:
    """URLs, bare addresses and Unix sockets."""
    assert parse_server(text) == ServerAddress(text, base_url, socket_path)


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("http://10.0.0.7:9193", "the token would be sent unencrypted"),
        ("sidecar.example:9193", "the token would be sent unencrypted"),
        ("https://ann:secret@sidecar.example", "more than scheme, host and port"),
        ("http://127.0.0.1:9193/v1", "more than scheme, host and port"),
        ("http://127.0.0.1:99999", "is not an address"),
        ("ftp://127.0.0.1", "is not an address"),
        ("https://", "is not an address"),
        ("", "is not an address"),
        ("unix:admin.sock", "has no absolute path"),
    ],
)
def test_parse_server__refuses_the_rest(text: str, reported: str) -> None:
    """Whatever would send a token somewhere by mistake; each refusal says what to write instead."""
    with pytest.raises(ServerAddressError, match=reported):
        parse_server(text)


@pytest.mark.parametrize("segment", ["", ".", "..", "a b", "../x?y#z", "a%2fb", "\xe4", "a\n", "\udcff"])
def test_path_to__an_id_stays_in_its_place(segment: str) -> None:
    """No id can make a call of another path."""
    with pytest.raises(AdminCallError, match="is not an id"):
        path_to("integrations", segment, "suspend")
    assert path_to("integrations", "acme-erp.2_x") == "/v1/integrations/acme-erp.2_x"


def test_client__a_silent_server_costs_the_deadline_only() -> None:
    """A missing answer is reported, and that a change may have happened."""
    with (
        Scripted(SILENCE) as server,
        client_of(server.url, timeout_s=1.0) as client,
    ):
        with pytest.raises(AdminCallError, match=r"no answer from http://.* within 1 s") as caught:
            client.change("POST", "/v1/x", {}, idempotency_key="k")
        assert (caught.value.failure, caught.value.may_have_happened) == (Failure.UNAVAILABLE, True)
        with pytest.raises(AdminCallError, match="--timeout 60s") as caught:
            client.get("/v1/x")
        assert not caught.value.may_have_happened


def test_client__a_stream_that_stops_costs_the_deadline_only() -> None:
    """The deadline holds for each piece of a stream: one that stalls is given up and reported."""
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst\nsecond\nthi"
    with _Stopping(begun) as server, client_of(server.url, timeout_s=2.0) as client:
        lines: list[str] = []
        with pytest.raises(AdminCallError, match=r"no answer from .* within 2 s"):
            client.copy_lines("/v1/x", None, lines.append)
    assert lines == ["first", "second"]


class _Stopping(Scripted):
    """Sends the beginning of an answer, and keeps the connection."""

    def serve(self, connection: socket.socket) -> None:
        """Send it, and leave it at that."""
        said = self._script[0]
        assert said is not None
        connection.sendall(said)


def test_client__nobody_there_is_reported() -> None:
    """A refused connection names the address and what to look at; nothing can have happened."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with client_of(f"127.0.0.1:{port}") as client:
        with pytest.raises(AdminCallError, match=r"cannot reach 127.0.0.1:\d+.*\n.*listen.admin") as caught:
            client.change("POST", "/v1/x", {}, idempotency_key="k")
        assert not caught.value.may_have_happened


def test_client__a_ca_file_that_is_none_is_reported() -> None:
    """Before anything is sent."""
    with pytest.raises(AdminCallError, match=r"the CA file .* cannot be used"):
        AdminClient(parse_server("https://localhost:1"), TOKEN, ca=module.Path("/no/such/ca.pem"))


def test_client__a_lost_connection_is_tried_again_under_the_same_key() -> None:
    """A change whose answer was lost is sent again, the same to the letter; the key makes it one change."""
    with Scripted(CUT, CUT, OK) as server, client_of(server.url) as client:
        reported = client.change("POST", "/v1/x", {"a": 1}, idempotency_key="the-key", expected_generation=7)
    assert reported.data == {"is_fine": True}
    assert len(server.requests) == ATTEMPTS_MAX == 3
    assert len(set(server.requests)) == 1
    assert b"Idempotency-Key: the-key\r\n" in server.requests[0]
    assert b'If-Match: "7"\r\n' in server.requests[0]
    assert server.requests[0].endswith(b'{"a": 1}')


def test_client__tries_so_often_and_no_more() -> None:
    """A server that always closes is given up; whether the change happened is unknown."""
    with (
        Scripted(CUT) as server,
        client_of(server.url) as client,
        pytest.raises(AdminCallError, match=r"the connection to .* was lost") as caught,
    ):
        client.change("POST", "/v1/x", {}, idempotency_key="k")
    assert caught.value.may_have_happened
    assert len(server.requests) == ATTEMPTS_MAX


def test_client__a_change_whose_answer_was_lost_happens_once(shared_api: ServedApi) -> None:
    """Against the real API: the first answer is lost on its way, the second is the same change's replay."""
    shared_api.output("integrations", "create", "lost")
    with (
        LosingRelay(shared_api.url, losses=1) as relay,
        client_of(relay.url, token=shared_api.tokens["ann"]) as client,
    ):
        reported = client.change(
            "POST", "/v1/integrations/lost/credentials/issue", {}, idempotency_key="lost-answer"
        )
    assert len(relay.requests) == 2
    assert reported.is_replay
    assert reported.data["api_key"] is None
    record = json.loads(shared_api.output("integrations", "show", "lost", "--json"))
    assert [credential["id"] for credential in record["credentials"]] == [reported.data["credential_id"]]


def test_client__follows_no_redirect() -> None:
    """A token goes to the server that was named: an answer cannot send it elsewhere."""
    with Scripted(OK) as other:
        moved = answer(302, b"", "text/plain", f"Location: {other.url}/v1/x")
        with (
            Scripted(moved) as server,
            client_of(server.url) as client,
            pytest.raises(AdminCallError, match="answered 302"),
        ):
            client.get("/v1/x")
    assert other.requests == []


def test_client__uses_no_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that some variable names would see the token."""
    with Scripted(OK) as proxy, Scripted(OK) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        with client_of(server.url) as client:
            assert client.get("/v1/x") == {"is_fine": True}
    assert (len(proxy.requests), len(server.requests)) == (0, 1)


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"\xff", b"[" * 100_000])
def test_client__an_answer_that_is_no_object_is_reported(body: bytes) -> None:
    """Another program's page is not taken for an answer."""
    with (
        Scripted(answer(200, body)) as server,
        client_of(server.url) as client,
        pytest.raises(AdminCallError, match="answer with a JSON object"),
    ):
        client.get("/v1/x")


def test_client__an_answer_beyond_its_bound_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server cannot fill the memory with an answer, nor with an error."""
    monkeypatch.setattr(module, "ANSWER_BYTES_MAX", 100)
    monkeypatch.setattr(module, "ERROR_BYTES_MAX", 100)
    for status in (200, 500):
        with (
            Scripted(answer(status, b" " * 101)) as server,
            client_of(server.url) as client,
            pytest.raises(AdminCallError, match="larger than 100 bytes"),
        ):
            client.get("/v1/x")


def test_client__a_line_beyond_its_bound_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor with a line that never ends."""
    monkeypatch.setattr(module, "LINE_BYTES_MAX", 100)
    with Scripted(answer(200, b"short\n" + b"x" * 200)) as server, client_of(server.url) as client:
        lines: list[str] = []
        with pytest.raises(AdminCallError, match="longer than 100 bytes"):
            client.copy_lines("/v1/x", None, lines.append)
    assert lines == ["short"]


def test_client__a_stream_that_is_cut_off_is_reported() -> None:
    """Half an export is not taken for a whole one."""
    with (
        Scripted(answer(200, b"one\ntwo")) as server,
        client_of(server.url) as client,
        pytest.raises(AdminCallError, match="in the middle of a line"),
    ):
        client.copy_lines("/v1/x", None, [].append)
    cut = answer(200, b"one\ntwo\n").replace(b"Content-Length: 8", b"Content-Length: 80")
    with (
        Scripted(cut) as server,
        client_of(server.url) as client,
        pytest.raises(AdminCallError, match="was lost"),
    ):
        client.copy_lines("/v1/x", None, [].append)


def test_client__lists_page_by_page() -> None:
    """Pages are followed to the limit, and where more begin is kept."""
    pages = [
        answer(200, json.dumps({"items": [{"n": 1}, {"n": 2}], "next_after": "2", "as_of": "a"}).encode()),
        answer(200, json.dumps({"items": [{"n": 3}], "next_after": "3", "as_of": "b"}).encode()),
    ]
    with Scripted(*pages) as server, client_of(server.url) as client:
        listing = client.listed(
            "/v1/x", {"search": "", "flag": True, "many": ["a", "b"]}, limit=3, page_max=2
        )
    assert [item["n"] for item in listing.items] == [1, 2, 3]
    assert (listing.next_after, listing.rest) == ("3", {"as_of": "a"})
    paths = [request.split(b" ")[1] for request in server.requests]
    assert paths == [
        b"/v1/x?flag=true&many=a&many=b&limit=2",
        b"/v1/x?flag=true&many=a&many=b&limit=1&after=2",
    ]
