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
def test_envelope__a_fault_of_the_registry_is_reported_as_such(
    api: AdminApi,
    monkeypatch: pytest.MonkeyPatch,
    error: RegistryError,
    status: int,
    code: str,
    retry_after: str | None,
) -> None:
    """With whether the change may have happened, and when to try again; a read says nothing of changes."""
    api.create()
    monkeypatch.setattr(api.registry, "apply", failing(error))
    monkeypatch.setattr(api.registry, "get", failing(error))
    answer = api.call("POST", f"{ACME}/limit/set", {"rate_limit_rpm": 5})
    document = api.refused(status, code, answer)
    assert document["may_have_happened"] is error.may_have_happened
    is_harmless = isinstance(error, RegistryUnavailableError) and not error.may_have_happened
    said = ". Nothing was changed; retry when that is corrected" if is_harmless else ""
    assert (document["detail"], answer.headers.get("Retry-After")) == (f"{error}{said}", retry_after)
    assert "may_have_happened" not in api.refused(status, code, api.call("GET", ACME))


def test_envelope__each_failed_call_is_in_the_log_by_its_request_id(
    api: AdminApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused or failed, read or change, by a stranger or not: the caller's answer is found there."""
    api.create()
    with caplog.at_level(logging.INFO):
        answers = [
            api.call("GET", "/v1/integrations/nobody"),
            api.call("POST", f"{ACME}/limit/set", {}),
            api.call("GET", ACME, who=""),
        ]
        error = RegistryUnavailableError("the store is away")
        monkeypatch.setattr(api.registry, "token_holder", failing(error))
        answers += [api.call("GET", ACME), api.call("POST", f"{ACME}/limit/set", {"rate_limit_rpm": 5})]
    logged = {vars(record).get("event_fields", {}).get("request_id") for record in caplog.records}
    assert all(answer.status_code >= 400 for answer in answers)
    assert {answer.headers["X-Request-Id"] for answer in answers} <= logged


def test_envelope__a_registry_that_cannot_tell_who_calls_lets_nobody_in(
    api: AdminApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """503, and no failed attempt is held against anybody."""
    error = RegistryUnavailableError("the file /where/it/is is locked")
    monkeypatch.setattr(api.registry, "token_holder", failing(error))
    answer = api.call("POST", "/v1/integrations", {"id": "a", "name": "A"})
    api.refused(503, "store_unavailable", answer)
    assert "/where/it/is" not in answer.text, "strangers get no details; the log has them"
    assert answer.json()["may_have_happened"] is False
    (line,) = [record for record in caplog.records if record.name == middleware.__name__]
    assert vars(line)["event_fields"]["error"] == str(error)
    assert api.metrics.value("sidecar_admin_failed_attempts_total", "401") == 0


def test_envelope__a_look_up_that_hangs_gives_its_place_back(
    api: AdminApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else strangers would hold every place of theirs for as long as the registry is patient."""

    async def hang(token_id: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(authentication, "LOOK_UP_TIMEOUT_S", 0.01)
    monkeypatch.setattr(api.registry, "token_holder", hang)
    answer = api.call("POST", "/v1/integrations", {"id": "a", "name": "A"})
    api.refused(503, "store_unavailable", answer)
    assert answer.json()["may_have_happened"] is False


def test_envelope__a_fault_of_our_own_tells_nothing_and_is_logged(
    api: AdminApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has it under the request id."""
    monkeypatch.setattr(api.registry, "apply", failing(ZeroDivisionError("at the heart of it")))
    answer = api.call("POST", "/v1/integrations", {"id": "a", "name": "A"})
    document = api.refused(500, "internal", answer)
    assert document["may_have_happened"] is True
    assert "heart" not in answer.text and "ZeroDivision" not in answer.text
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert document["request_id"] in line.getMessage()
    assert line.exc_info and line.exc_info[0] is ZeroDivisionError


def test_envelope__half_an_answer_breaks_off(api: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that fails in the middle must not look like a whole one."""
    api.create()
    pages = iter([api.registry.audit])

    async def audit(query: Any) -> Any:
        real = next(pages, None)
        if real is None:
            raise RegistryUnavailableError("away")
        return await real(query)

    monkeypatch.setattr(api.registry, "audit", audit)
    monkeypatch.setattr("sidecar.services.admin.audit.EXPORT_PAGE", 2)
    with pytest.raises(RegistryUnavailableError):
        api.call("GET", "/v1/audit/export")


def test_envelope__what_follows_a_commit_cannot_unmake_it(
    api: AdminApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That nobody can be asked whether they follow is no failure of the change."""
    api.create()
    monkeypatch.setattr(api.registry, "live_sidecars", failing(RegistryUnavailableError("away")))
    view = api.change(f"{ACME}/suspend?wait=5s", {"reason": "x"})
    assert view["is_change"] and view["integration"]["status"] == "suspended"
    assert (view["confirmation"]["is_complete"], view["confirmation"]["waiting_for"]) == (False, [])


def test_envelope__concurrent_calls_are_bounded(api: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A further one is refused at once, and their places are free again afterwards."""
    assert (CALLS_MAX, LONG_CALLS_MAX) == (128, 32)
    api.app = build_api(api.context, calls_max=2)
    holding, begun = asyncio.Event(), asyncio.Semaphore(0)
    real = api.registry.list

    async def slow(*arguments: Any) -> Any:
        begun.release()
        await holding.wait()
        return await real(*arguments)

    monkeypatch.setattr(api.registry, "list", slow)

    async def crowd() -> tuple[httpx.Response, list[httpx.Response]]:
        first = [asyncio.ensure_future(api.calling("GET", "/v1/integrations")) for _ in range(2)]
        for _ in first:
            await begun.acquire()
        third = await api.calling("GET", "/v1/whoami")
        holding.set()
        return third, list(await asyncio.gather(*first))

    third, first = api.run(crowd())
    assert api.refused(503, "overloaded", third)
    assert third.headers["Retry-After"] == "1"
    assert [answer.status_code for answer in first] == [200, 200]
    assert api.call("GET", "/v1/whoami").status_code == 200


def test_envelope__strangers_take_no_place_of_administrators(
    api: AdminApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tokens are being looked up, a valid one has a place, and the server knows it."""
    api.app = build_api(api.context, calls_max=1)
    stranger = generate_api_key("sca")
    holding, begun = asyncio.Event(), asyncio.Semaphore(0)
    real = api.registry.token_holder

    async def slow_for_strangers(token_id: str) -> Any:
        if token_id == stranger.credential_id:
            begun.release()
            await holding.wait()
        return await real(token_id)

    monkeypatch.setattr(api.registry, "token_holder", slow_for_strangers)
    headers = {"Authorization": f"Bearer {stranger.api_key}"}

    async def crowd() -> tuple[httpx.Response, list[httpx.Response]]:
        first = [asyncio.ensure_future(api.calling("GET", "/v1/whoami", headers=headers)) for _ in range(20)]
        for _ in first:
            await begun.acquire()
        known = await api.calling("GET", "/v1/whoami")
        holding.set()
        return known, list(await asyncio.gather(*first))

    known, first = api.run(crowd())
    assert known.status_code == 200
    assert {answer.status_code for answer in first} <= {401, 429}


def test_envelope__long_calls_leave_room_for_short_ones(api: AdminApi) -> None:
    """Those that wait for sidecars, export or verify have a bound of their own; refused, they did nothing."""
    api.create()
    before = api.revision()
    api.app = build_api(api.context, long_calls_max=0)
    api.refused(503, "overloaded", api.call("POST", f"{ACME}/suspend?wait=1s", {"reason": "x"}))
    changes = {"changes": [{"action": "integration.delete", "integration_id": "acme"}]}
    api.refused(503, "overloaded", api.call("POST", "/v1/changes?wait=1s", changes))
    for path in ("/v1/audit/export", "/v1/audit/verify"):
        api.refused(503, "overloaded", api.call("GET", path))
    assert api.revision() == before
    assert api.change(f"{ACME}/suspend", {"reason": "x"})["is_change"]


def test_envelope__long_calls_give_their_place_back(api: AdminApi) -> None:
    """Once their answer is sent, also one that is streamed or that failed."""
    api.app = build_api(api.context, long_calls_max=1)
    for _ in range(3):
        assert api.call("GET", "/v1/audit/export").status_code == 200
        api.refused(422, "invalid_value", api.call("GET", "/v1/audit/verify?anchor=x"))
        assert api.call("GET", "/v1/audit/verify").status_code == 200


def test_confirmation__ends_when_every_live_sidecar_has_followed(api: AdminApi) -> None:
    """With how many there are, and how long it took."""
    api.create()
    api.run(api.registry.announce("one", Revision((99,))))
    api.run(api.registry.announce("two", Revision((0,))))

    async def scenario() -> httpx.Response:
        suspending = asyncio.ensure_future(api.calling("POST", f"{ACME}/suspend?wait=60s", {"reason": "x"}))
        while (await api.registry.revision()).sequences[0] < 6:  # noqa: ASYNC110 - a commit has no event
            await asyncio.sleep(0)
        assert not suspending.done()
        await api.registry.announce("two", Revision((6,)))
        return await suspending

    confirmation = api.run(scenario()).json()["confirmation"]
    assert confirmation["is_complete"] and confirmation["waiting_for"] == []
    assert confirmation["sidecars"] == 2 and confirmation["took_ms"] >= 0


def test_confirmation__at_the_timeout_it_names_who_lags(api: AdminApi) -> None:
    """The change is in force wherever it was confirmed; those named are to be looked at."""
    api.run(api.registry.announce("late", Revision((3,))))
    api.run(api.registry.announce("here", Revision((9,))))
    request = Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []})
    call = Call(request, "r", "local", CallLimit(1))
    view = api.run(confirm(api.context, call, [Position(0, 5)], 0.2))
    assert (view["is_complete"], view["sidecars"], view["waiting_for"]) == (False, 2, ["late"])
    assert call.waited_ns > 0 and WAITING_NAMED_MAX == 100


def test_confirmation__nobody_alive_has_nothing_to_confirm(api: AdminApi) -> None:
    """No sidecar decides, so none decides by what was before; the number says that it was none."""
    api.create()
    view = api.change(f"{ACME}/suspend?wait=60s", {"reason": "x"})
    assert (view["confirmation"]["is_complete"], view["confirmation"]["sidecars"]) == (True, 0)


def test_confirmation__the_last_position_of_each_partition_is_enough() -> None:
    """A position that was followed includes the earlier ones."""
    positions = [Position(1, 5), Position(0, 3), Position(1, 9), Position(1, 7)]
    assert latest(positions) == (Position(0, 3), Position(1, 9))


@pytest.mark.parametrize("wait", ["61s", "-1s", "1.5s", "soon", "60"])
def test_confirmation__the_wait_is_bounded(api: AdminApi, wait: str) -> None:
    """Up to a minute, in whole seconds."""
    api.create()
    answer = api.call("POST", f"{ACME}/suspend?wait={wait}", {"reason": "x"})
    assert api.refused(422, "invalid_value", answer)["problems"][0]["field"] == "wait"


def counted(api: AdminApi, route: str, method: str, status: str) -> int:
    """Calls of one kind so far."""
    return api.metrics.value("sidecar_admin_requests_total", route, method, status)


def test_metrics__calls_are_counted_by_what_they_came_to(api: AdminApi) -> None:
    """Labels are from closed lists, whatever is called."""
    api.create()
    api.call("GET", ACME)
    api.call("GET", ACME, None, "")
    api.call("GET", "/v1/x" * 50)
    api.call("FROB", "/v1/whoami")
    api.call("POST", f"{ACME}/suspend", {}, "audrey")
    api.call("POST", f"{ACME}/suspend", {"reason": "x"}, "olli")
    assert counted(api, "integrations", "POST", "201") == 1
    assert counted(api, "integrations", "GET", "200") == 1
    assert counted(api, "other", "other", "401") == 1
    assert counted(api, "other", "other", "404") == 1
    assert counted(api, "other", "other", "405") == 1
    assert counted(api, "standing", "POST", "403") == 1
    assert counted(api, "standing", "POST", "200") == 1
    families = {family.name: family for family in api.metrics.collect()}
    durations = {
        sample.labels["kind"]: sample.value
        for sample in families["sidecar_admin_request_duration_seconds"].samples
        if sample.name.endswith("_count")
    }
    assert durations == {"read": 3, "change": 4}


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What was logged of changes."""
    return [vars(record)["event_fields"] for record in caplog.records if record.name == middleware.__name__]


def test_log__a_change_has_one_line_with_its_outcome(api: AdminApi, caplog: pytest.LogCaptureFixture) -> None:
    """Who did what to whom, from where, and what came of it; reads have none."""
    caplog.set_level(logging.INFO)
    api.create()
    api.call("GET", ACME)
    api.call("POST", f"{ACME}/suspend", {"reason": "x"}, "olli", headers={"X-Request-Id": "r-1"})
    api.call("POST", f"{ACME}/limit/set", {"rate_limit_rpm": 0}, "ann")
    api.call("POST", f"{ACME}/limit/set", {"rate_limit_rpm": 5}, "olli")
    api.change("/v1/administrators/bob/role", {"role": "auditor"})
    _, suspended, invalid, forbidden, role = lines(caplog)
    assert suspended == {
        "status": 200,
        "administrator": "olli",
        "role": "operator",
        "token_id": api.keys["olli"].credential_id,
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


def test_log__no_line_holds_a_body_or_a_header(api: AdminApi, caplog: pytest.LogCaptureFixture) -> None:
    """Neither tokens, nor keys, nor what an administrator wrote."""
    caplog.set_level(logging.DEBUG)
    view = api.create()
    api.call("POST", f"{ACME}/suspend", {"reason": "something confidential"})
    everything = str([vars(record) for record in caplog.records if record.name.startswith("sidecar")])
    for secret in (api.token("ann"), view["api_key"], "confidential"):
        assert secret not in everything


def test_envelope__a_call_from_a_unix_socket_is_local(api: AdminApi) -> None:
    """There is no address, and the record says 'local'."""

    async def scenario() -> httpx.Response:
        transport = httpx.ASGITransport(api.app, client=None)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://local") as client:
            headers = {"Authorization": f"Bearer {api.token('ann')}"}
            return await client.post("/v1/integrations", json={"id": "a", "name": "A"}, headers=headers)

    assert api.run(scenario()).status_code == 201
    assert api.trail()[-1]["source"] == "local"


def test_envelope__webhook_secrets_need_a_key_to_seal_them(api: AdminApi) -> None:
    """Without one none is made, and the answer names the setting."""
    api.create()
    api.app = build_api(replace(api.context, sealer=None))
    document = api.refused(409, "webhook_secrets_off", api.call("POST", f"{ACME}/webhook-secret/generate"))
    assert "webhook_secret_key_file" in document["problems"][0]["remedy"]


def test_envelope__a_web_socket_is_let_in_nowhere(api: AdminApi) -> None:
    """Only plain calls carry a token; nothing below is asked."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    api.run(api.app({"type": "websocket", "path": "/v1/whoami", "headers": []}, receive, send))
    assert sent == []


@pytest.mark.parametrize("name", ["If-Match", "Idempotency-Key", "Content-Type"])
def test_envelope__a_header_that_stands_twice_is_refused(api: AdminApi, name: str) -> None:
    """Which of the two was meant is anybody's guess."""
    api.create()
    before = api.revision()

    async def scenario() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api.app)) as client:
            value = "application/json" if name == "Content-Type" else '"1"'
            headers = [("Authorization", f"Bearer {api.token('ann')}"), (name, value), (name, value)]
            if name != "Content-Type":
                headers.append(("Content-Type", "application/json"))
            url = f"http://admin.example{ACME}/limit/set"
            return await client.post(url, content=b'{"rate_limit_rpm": 5}', headers=headers)

    document = api.refused(400, "invalid_header", api.run(scenario()))
    assert document["problems"][0]["field"] == name
    assert api.revision() == before
