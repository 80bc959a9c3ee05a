"""Where the admin API is served, by which registry, and what is said where it is not."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.domain.changes import Position
from sidecar.process.admin_http import AdminApp
from sidecar.process.checking import check
from sidecar.process.config import Config, load_config
from sidecar.process.config_checks import NO_CONTROL_PLANE
from sidecar.process.control_plane import sealer_of
from sidecar.process.first_administrator import create_first_administrator
from sidecar.process.readiness import Readiness
from sidecar.process.supervisor.admin_api import SupervisedAdminApi
from sidecar.sources.file_faults import FileFaultsError
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from sidecar.transports.http1.asgi import Receive, Scope, Send
from sidecar.transports.http1.work import OWN_LOOP
from tests.administration import LIFECYCLE
from tests.building import make_metrics
from tests.decision_log import decision_row, write_segment
from tests.http_exchanges import ask

SQLITE = "sqlite:registry.sqlite"


def an_app(why_no_api: str = NO_CONTROL_PLANE) -> AdminApp:
    """An admin application without an API."""
    metrics = make_metrics()
    return AdminApp(metrics, Readiness(metrics, ()), OWN_LOOP, why_no_api)


async def get(app: AdminApp, path: str, token: str = "") -> tuple[int, bytes]:
    """What *app* answers to a GET."""
    headers = ((b"authorization", f"Bearer {token}".encode()),) if token else ()
    answer = await ask(app.serve, path, headers=headers)
    return answer.status, answer.body


def configured(folder: Path, **settings: Any) -> Config:
    """A configuration with these settings."""
    file = folder / "sidecar.yaml"
    file.write_text(yaml.safe_dump(settings))
    return load_config(file, {})


async def in_force(position: Position) -> bool:
    """No worker lags behind."""
    return True


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An API that answers with the requested path."""
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/integrations", "/v1//x"])
def test_dispatch__the_api_gets_its_paths(path: str) -> None:
    """All under /v1 goes to the API; without one a problem document says why, and what to set."""
    app = an_app()
    status, body = asyncio.run(get(app, path))
    assert (status, json.loads(body)["detail"]) == (404, NO_CONTROL_PLANE)
    app.api = echo
    assert asyncio.run(get(app, path)) == (299, path.encode())


@pytest.mark.parametrize(
    ("path", "status"), [("/v1x", 404), ("/v", 404), ("/metrics", 200), ("/healthz", 200)]
)
def test_dispatch__other_paths_stay_pages(path: str, status: int) -> None:
    """An API takes nothing that is not its own."""
    app = an_app()
    app.api = echo
    assert asyncio.run(get(app, path))[0] == status


async def test_supervisor__serves_the_registry_of_its_configuration(tmp_path: Path) -> None:
    """The API serves the registry of its configuration, and of the next configuration, if it has one."""
    first, second = tmp_path / "first", tmp_path / "second"

    for folder in (first, second):
        folder.mkdir()

    async def token_in(folder: Path) -> str:
        registry = await SqliteRegistry.open(folder / "registry.sqlite", LIFECYCLE)
        made = await create_first_administrator(registry, "ann", "Ann", 86_400)
        await registry.aclose()
        return made.token

    tokens = await token_in(first), await token_in(second)
    app = an_app()
    plane = SupervisedAdminApi(app, make_metrics(), in_force)
    try:
        await plane.open(configured(first, registry=SQLITE))
        assert [(await get(app, "/v1/whoami", token))[0] for token in tokens] == [200, 401]
        await plane.open(configured(second, registry=SQLITE))
        assert [(await get(app, "/v1/whoami", token))[0] for token in tokens] == [401, 200]
        with pytest.raises(FileFaultsError, match="webhook_secret_key_file"):
            await plane.open(configured(first, registry=SQLITE, webhook_secret_key_file="none.key"))
        assert (await get(app, "/v1/whoami", tokens[1]))[0] == 200  # the one before stays
        await plane.open(configured(first))
        assert (await get(app, "/v1/whoami", tokens[0]))[0] == 404
    finally:
        await plane.close()
    assert app.api is None


async def test_supervisor__answers_from_its_decision_log(tmp_path: Path) -> None:
    """The API reads the folder of `decision_log`; without one it says what to set."""
    write_segment(tmp_path / "log" / "box", 1, [decision_row(1, "0123456789000000000001")])

    registry = await SqliteRegistry.open(tmp_path / "registry.sqlite", LIFECYCLE)
    token = (await create_first_administrator(registry, "ann", "Ann", 86_400)).token
    await registry.aclose()
    app = an_app()
    plane = SupervisedAdminApi(app, make_metrics(), in_force)
    path = "/v1/decisions/0123456789000000000001"
    try:
        await plane.open(configured(tmp_path, registry=SQLITE))
        status, body = await get(app, path, token)
        assert (status, b"decision_log" in body) == (404, True)
        await plane.open(configured(tmp_path, registry=SQLITE, decision_log="log"))
        status, body = await get(app, path, token)
        assert (status, b"0123456789000000000001" in body) == (200, True)
    finally:
        await plane.close()


def test_sealer__where_there_is_one(tmp_path: Path) -> None:
    """Beside a SQLite registry a key is made; a fleet must name one; a named one is used as it is."""
    assert sealer_of(configured(tmp_path, store="redis://127.0.0.1:1")) is None
    sealer = sealer_of(configured(tmp_path, registry=SQLITE))
    assert sealer is not None
    sealed = sealer.seal("whsec_x")
    named = {"store": "redis://127.0.0.1:1", "webhook_secret_key_file": "registry.sqlite.key"}
    again = sealer_of(configured(tmp_path, **named))
    assert again is not None
    assert again.open(sealed) == "whsec_x"


def test_check_config__makes_nothing(tmp_path: Path) -> None:
    """Checking a configuration neither makes the registry nor its key."""
    configured(tmp_path, registry=SQLITE)
    check(tmp_path / "sidecar.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["sidecar.yaml"]
