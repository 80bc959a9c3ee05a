"""Around every call: bounds, faults of the registry and of our own, counts, log lines, confirmation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from sidecar.domain.api_keys import generate_api_key
from sidecar.domain.changes import Position, Revision
from sidecar.services.admin import authentication, middleware
from sidecar.services.admin.api import build_api
from sidecar.services.admin.call import Call
from sidecar.services.admin.concurrency import CALLS_MAX, LONG_CALLS_MAX, CallLimit
from sidecar.services.admin.confirmation import WAITING_NAMED_MAX, confirm, latest
from sidecar.stores.registry.protocol import (
    RegistryClosedError,
    RegistryDamagedError,
    RegistryError,
    RegistryOverloadedError,
    RegistryTimeoutError,
    RegistryUnavailableError,
)
from tests.unit.services.admin.admin_api import AdminApi

ACME = "/v1/integrations/acme"


def failing(error: BaseException) -> Callable[..., Any]:
    """A method of the registry that raises *error*."""

    async def fail(*given: Any, **named: Any) -> Any:
        raise error

    return fail


FAULTS = [
    (RegistryUnavailableError("the store is away"), 503, "store_unavailable", "1"),
    (RegistryUnavailableError("the store is away", may_have_happened=True), 503, "store_unavailable", "1"),
    (RegistryClosedError("closed"), 503, "store_unavailable", "1"),
    (RegistryOverloadedError("too many wait"), 503, "overloaded", "1"),
    (RegistryTimeoutError("no answer in 10 s"), 504, "timeout", None),
    (RegistryTimeoutError("no answer in 10 s", may_have_happened=True), 504, "timeout", None),
    (RegistryDamagedError("no registry"), 500, "registry_damaged", None),
]


@pytest.mark.parametrize(("error", "status", "code", "retry_after"), FAULTS)
def test_envelope__a_fault_of_the_registry_is_told_as_such(
    world: AdminApi,
    monkeypatch: pytest.MonkeyPatch,
    error: RegistryError,
    status: int,
    code: str,
    retry_after: str | None,
) -> None:
    """With whether the change may have happened, and when to try again; a read says nothing of changes."""
    world.create()
    monkeypatch.setattr(world.registry, "apply", failing(error))
    monkeypatch.setattr(world.registry, "get", failing(error))
    answer = world.call("POST", f"{ACME}/limit/set", {"rate_limit_rpm": 5})
    document = world.refused(status, code, answer)
    assert document["may_have_happened"] is error.may_have_happened
    is_harmless = isinstance(error, RegistryUnavailableError) and not error.may_have_happened
    said = ". Nothing was changed; retry when that is corrected" if is_harmless else ""
    assert (document["detail"], answer.headers.get("Retry-After")) == (f"{error}{said}", retry_after)
    assert "may_have_happened" not in world.refused(status, code, world.call("GET", ACME))


def test_envelope__each_failed_call_is_in_the_log_by_its_request_id(
    world: AdminApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused or failed, read or change, by a stranger or not: what the caller was told is found there."""
    world.create()
    with caplog.at_level(logging.INFO):
        answers = [
            world.call("GET", "/v1/integrations/nobody"),
            world.call("POST", f"{ACME}/limit/set", {}),
            world.call("GET", ACME, who=""),
        ]
        error = RegistryUnavailableError("the store is away")
        monkeypatch.setattr(world.registry, "token_holder", failing(error))
        answers += [world.call("GET", ACME), world.call("POST", f"{ACME}/limit/set", {"rate_limit_rpm": 5})]
    logged = {vars(record).get("event_fields", {}).get("request_id") for record in caplog.records}
    assert all(answer.status_code >= 400 for answer in answers)
    assert {answer.headers["X-Request-Id"] for answer in answers} <= logged


def test_envelope__a_registry_that_cannot_tell_who_calls_lets_nobody_in(
    world: AdminApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """503, and no failed attempt is held against anybody."""
    error = RegistryUnavailableError("the file /where/it/is is locked")
    monkeypatch.setattr(world.registry, "token_holder", failing(error))
    answer = world.call("POST", "/v1/integrations", {"id": "a", "name": "A"})
    world.refused(503, "store_unavailable", answer)
    assert "/where/it/is" not in answer.text, "strangers get no details; the log has them"
    assert answer.json()["may_have_happened"] is False
    (line,) = [record for record in caplog.records if record.name == middleware.__name__]
    assert vars(line)["event_fields"]["error"] == str(error)
    assert world.metrics.value("sidecar_admin_failed_attempts_total", "401") == 0


def test_envelope__a_look_up_that_hangs_gives_its_place_back(
    world: AdminApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else strangers would hold every place of theirs for as long as the registry is patient."""

    async def hang(token_id: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(authentication, "LOOK_UP_TIMEOUT_S", 0.01)
    monkeypatch.setattr(world.registry, "token_holder", hang)
    answer = world.call("POST", "/v1/integrations", {"id": "a", "name": "A"})
    world.refused(503, "store_unavailable", answer)
    assert answer.json()["may_have_happened"] is False


def test_envelope__a_fault_of_our_own_tells_nothing_and_is_logged(
    world: AdminApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has it under the request id."""
    monkeypatch.setattr(world.registry, "apply", failing(ZeroDivisionError("at the heart of it")))
    answer = world.call("POST", "/v1/integrations", {"id": "a", "name": "A"})
    document = world.refused(500, "internal", answer)
    assert document["may_have_happened"] is True
    assert "heart" not in answer.text and "ZeroDivision" not in answer.text
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert document["request_id"] in line.getMessage()
    assert line.exc_info and line.exc_info[0] is ZeroDivisionError


def test_envelope__half_an_answer_breaks_off(world: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that fails in the middle must not look like a whole one."""
    world.create()
    pages = iter([world.registry.audit])

    async def audit(query: Any) -> Any:
        real = next(pages, None)
        if real is None:
            raise RegistryUnavailableError("away")
        return await real(query)

    monkeypatch.setattr(world.registry, "audit", audit)
    monkeypatch.setattr("sidecar.services.admin.audit.EXPORT_PAGE", 2)
    with pytest.raises(RegistryUnavailableError):
        world.call("GET", "/v1/audit/export")


def test_envelope__what_follows_a_commit_cannot_unmake_it(
    world: AdminApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That nobody can be asked whether they follow is no failure of the change."""
    world.create()
    monkeypatch.setattr(world.registry, "live_sidecars", failing(RegistryUnavailableError("away")))
    view = world.change(f"{ACME}/suspend?wait=5s", {"reason": "x"})
    assert view["is_change"] and view["integration"]["status"] == "suspended"
    assert (view["confirmation"]["is_complete"], view["confirmation"]["waiting_for"]) == (False, [])


def test_envelope__concurrent_calls_are_bounded(world: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A further one is refused at once, and their places are free again afterwards."""
    assert (CALLS_MAX, LONG_CALLS_MAX) == (128, 32)
    world.app = build_api(world.context, calls_max=2)
    holding, begun = asyncio.Event(), asyncio.Semaphore(0)
    real = world.registry.list

    async def slow(*arguments: Any) -> Any:
        begun.release()
        await holding.wait()
        return await real(*arguments)

    monkeypatch.setattr(world.registry, "list", slow)

    async def crowd() -> tuple[httpx.Response, list[httpx.Response]]:
        first = [asyncio.ensure_future(world.calling("GET", "/v1/integrations")) for _ in range(2)]
        for _ in first:
            await begun.acquire()
        third = await world.calling("GET", "/v1/whoami")
        holding.set()
        return third, list(await asyncio.gather(*first))

    third, first = world.run(crowd())
    assert world.refused(503, "overloaded", third)
    assert third.headers["Retry-After"] == "1"
    assert [answer.status_code for answer in first] == [200, 200]
    assert world.call("GET", "/v1/whoami").status_code == 200


def test_envelope__strangers_take_no_place_of_administrators(
    world: AdminApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tokens are being looked up, a valid one has a place and the server is told of it."""
    world.app = build_api(world.context, calls_max=1)
    stranger = generate_api_key("sca")
    holding, begun = asyncio.Event(), asyncio.Semaphore(0)
    real = world.registry.token_holder

    async def slow_for_strangers(token_id: str) -> Any:
        if token_id == stranger.credential_id:
            begun.release()
            await holding.wait()
        return await real(token_id)

    monkeypatch.setattr(world.registry, "token_holder", slow_for_strangers)
    headers = {"Authorization": f"Bearer {stranger.api_key}"}

    async def crowd() -> tuple[httpx.Response, list[httpx.Response]]:
        first = [
            asyncio.ensure_future(world.calling("GET", "/v1/whoami", headers=headers)) for _ in range(20)
        ]
        for _ in first:
            await begun.acquire()
        known = await world.calling("GET", "/v1/whoami")
        holding.set()
        return known, list(await asyncio.gather(*first))

    known, first = world.run(crowd())
    assert known.status_code == 200
    assert {answer.status_code for answer in first} <= {401, 429}


def test_envelope__long_calls_leave_room_for_short_ones(world: AdminApi) -> None:
    """Those that wait for sidecars, export or verify have a bound of their own; refused, they did nothing."""
    world.create()
    before = world.revision()
    world.app = build_api(world.context, long_calls_max=0)
    world.refused(503, "overloaded", world.call("POST", f"{ACME}/suspend?wait=1s", {"reason": "x"}))
    changes = {"changes": [{"action": "integration.delete", "integration_id": "acme"}]}
    world.refused(503, "overloaded", world.call("POST", "/v1/changes?wait=1s", changes))
    for path in ("/v1/audit/export", "/v1/audit/verify"):
        world.refused(503, "overloaded", world.call("GET", path))
    assert world.revision() == before
    assert world.change(f"{ACME}/suspend", {"reason": "x"})["is_change"]


def test_envelope__long_calls_give_their_place_back(world: AdminApi) -> None:
    """Once their answer is sent, also one that is streamed or that failed."""
    world.app = build_api(world.context, long_calls_max=1)
    for _ in range(3):
        assert world.call("GET", "/v1/audit/export").status_code == 200
        world.refused(422, "invalid_value", world.call("GET", "/v1/audit/verify?anchor=x"))
        assert world.call("GET", "/v1/audit/verify").status_code == 200


def test_confirmation__ends_when_every_live_sidecar_has_followed(world: AdminApi) -> None:
    """With how many there are, and how long it took."""
    world.create()
    world.run(world.registry.announce("one", Revision((99,))))
    world.run(world.registry.announce("two", Revision((0,))))

    async def scene() -> httpx.Response:
        suspending = asyncio.ensure_future(world.calling("POST", f"{ACME}/suspend?wait=60s", {"reason": "x"}))
        while (await world.registry.revision()).sequences[0] < 6:  # noqa: ASYNC110 - a commit has no event
            await asyncio.sleep(0)
        assert not suspending.done()
        await world.registry.announce("two", Revision((6,)))
        return await suspending

    confirmation = world.run(scene()).json()["confirmation"]
    assert confirmation["is_complete"] and confirmation["waiting_for"] == []
    assert confirmation["sidecars"] == 2 and confirmation["took_ms"] >= 0


def test_confirmation__at_the_timeout_it_names_who_lags(world: AdminApi) -> None:
    """The change is in force wherever it was confirmed; those named are to be looked at."""
    world.run(world.registry.announce("late", Revision((3,))))
    world.run(world.registry.announce("here", Revision((9,))))
    request = Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []})
    call = Call(request, "r", "local", CallLimit(1))
    view = world.run(confirm(world.context, call, [Position(0, 5)], 0.2))
    assert (view["is_complete"], view["sidecars"], view["waiting_for"]) == (False, 2, ["late"])
    assert call.waited_ns > 0 and WAITING_NAMED_MAX == 100


def test_confirmation__nobody_alive_has_nothing_to_confirm(world: AdminApi) -> None:
    """No sidecar decides, so none decides by what was before; the number says that it was none."""
    world.create()
    view = world.change(f"{ACME}/suspend?wait=60s", {"reason": "x"})
    assert (view["confirmation"]["is_complete"], view["confirmation"]["sidecars"]) == (True, 0)


def test_confirmation__the_last_position_of_each_partition_is_enough() -> None:
    """Whoever has followed so far has followed what came before."""
    positions = [Position(1, 5), Position(0, 3), Position(1, 9), Position(1, 7)]
    assert latest(positions) == (Position(0, 3), Position(1, 9))


@pytest.mark.parametrize("wait", ["61s", "-1s", "1.5s", "soon", "60"])
def test_confirmation__the_wait_is_bounded(world: AdminApi, wait: str) -> None:
    """Up to a minute, in whole seconds."""
    world.create()
    answer = world.call("POST", f"{ACME}/suspend?wait={wait}", {"reason": "x"})
    assert world.refused(422, "invalid_value", answer)["problems"][0]["field"] == "wait"


def counted(world: AdminApi, route: str, method: str, status: str) -> int:
    """Calls of one kind so far."""
    return world.metrics.value("sidecar_admin_requests_total", route, method, status)


def test_metrics__calls_are_counted_by_what_they_came_to(world: AdminApi) -> None:
    """Labels are from closed lists, whatever is called."""
    world.create()
    world.call("GET", ACME)
    world.call("GET", ACME, None, "")
    world.call("GET", "/v1/x" * 50)
    world.call("FROB", "/v1/whoami")
    world.call("POST", f"{ACME}/suspend", {}, "audrey")
    world.call("POST", f"{ACME}/suspend", {"reason": "x"}, "olli")
    assert counted(world, "integrations", "POST", "201") == 1
    assert counted(world, "integrations", "GET", "200") == 1
    assert counted(world, "other", "other", "401") == 1
    assert counted(world, "other", "other", "404") == 1
    assert counted(world, "other", "other", "405") == 1
    assert counted(world, "standing", "POST", "403") == 1
    assert counted(world, "standing", "POST", "200") == 1
    families = {one.name: one for one in world.metrics.collect()}
    durations = {
        sample.labels["kind"]: sample.value
        for sample in families["sidecar_admin_request_duration_seconds"].samples
        if sample.name.endswith("_count")
    }
    assert durations == {"read": 3, "change": 4}


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What was logged of changes."""
    return [vars(record)["event_fields"] for record in caplog.records if record.name == middleware.__name__]


def test_log__a_change_has_one_line_with_its_outcome(
    world: AdminApi, caplog: pytest.LogCaptureFixture
) -> None:
    """Who did what to whom, from where, and what came of it; reads have none."""
    caplog.set_level(logging.INFO)
    world.create()
    world.call("GET", ACME)
    world.call("POST", f"{ACME}/suspend", {"reason": "x"}, "olli", headers={"X-Request-Id": "r-1"})
    world.call("POST", f"{ACME}/limit/set", {"rate_limit_rpm": 0}, "ann")
    world.call("POST", f"{ACME}/limit/set", {"rate_limit_rpm": 5}, "olli")
    world.change("/v1/administrators/bob/role", {"role": "auditor"})
    _, suspended, invalid, forbidden, role = lines(caplog)
    assert suspended == {
        "status": 200,
        "administrator": "olli",
        "role": "operator",
        "token_id": world.keys["olli"].credential_id,
        "source": "192.0.2.1",
        "request_id": "r-1",
        "took_ms": suspended["took_ms"],
        "action": "integration.suspend",
        "subject": "integration:acme",
        "position": "0.6",
        "generation": 2,
        "is_replay": False,
        "is_in_force": True,
        "is_durable": True,
    }
    assert (invalid["status"], invalid["code"], invalid["action"]) == (422, "invalid_value", "limit.set")
    assert (forbidden["status"], forbidden["code"]) == (403, "role_forbids")
    assert (role["action"], role["subject"]) == ("admin.set_role", "administrator:bob")


def test_log__no_line_holds_a_body_or_a_header(world: AdminApi, caplog: pytest.LogCaptureFixture) -> None:
    """Neither tokens, nor keys, nor what an administrator wrote."""
    caplog.set_level(logging.DEBUG)
    view = world.create()
    world.call("POST", f"{ACME}/suspend", {"reason": "something confidential"})
    everything = str([vars(record) for record in caplog.records if record.name.startswith("sidecar")])
    for secret in (world.token("ann"), view["api_key"], "confidential"):
        assert secret not in everything


def test_envelope__a_call_from_a_unix_socket_is_local(world: AdminApi) -> None:
    """There is no address, and the record says 'local'."""

    async def scene() -> httpx.Response:
        transport = httpx.ASGITransport(world.app, client=None)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://local") as client:
            headers = {"Authorization": f"Bearer {world.token('ann')}"}
            return await client.post("/v1/integrations", json={"id": "a", "name": "A"}, headers=headers)

    assert world.run(scene()).status_code == 201
    assert world.trail()[-1]["source"] == "local"


def test_envelope__webhook_secrets_need_a_key_to_seal_them(world: AdminApi) -> None:
    """Without one none is made, and the answer names the setting."""
    world.create()
    world.app = build_api(replace(world.context, sealer=None))
    document = world.refused(
        409, "webhook_secrets_off", world.call("POST", f"{ACME}/webhook-secret/generate")
    )
    assert "webhook_secret_key_file" in document["problems"][0]["remedy"]


def test_envelope__a_web_socket_is_let_in_nowhere(world: AdminApi) -> None:
    """Only plain calls carry a token; nothing below is asked."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    world.run(world.app({"type": "websocket", "path": "/v1/whoami", "headers": []}, receive, send))
    assert sent == []


@pytest.mark.parametrize("name", ["If-Match", "Idempotency-Key", "Content-Type"])
def test_envelope__a_header_that_stands_twice_is_refused(world: AdminApi, name: str) -> None:
    """Which of the two was meant is anybody's guess."""
    world.create()
    before = world.revision()

    async def scene() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(world.app)) as client:
            value = "application/json" if name == "Content-Type" else '"1"'
            headers = [("Authorization", f"Bearer {world.token('ann')}"), (name, value), (name, value)]
            if name != "Content-Type":
                headers.append(("Content-Type", "application/json"))
            url = f"http://admin.example{ACME}/limit/set"
            return await client.post(url, content=b'{"rate_limit_rpm": 5}', headers=headers)

    document = world.refused(400, "invalid_header", world.run(scene()))
    assert document["problems"][0]["field"] == name
    assert world.revision() == before
