"""A small control plane: a registry file, four people with tokens, and the API over it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from starlette.types import ASGIApp

from sidecar.domain.administrators import Bootstrap, CreateAdministrator, NewToken
from sidecar.domain.api_keys import NewApiKey, generate_api_key
from sidecar.domain.changes import AdminRequest, ChangeContext, Position
from sidecar.domain.roles import Actor, Role
from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.services.admin.api import build_api
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.decision_log import DecisionLog
from sidecar.stores.registry.protocol import Registry
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from tests.administration import DAY_US, LIFECYCLE, NOW_US
from tests.building import ManualClock, make_policy
from tests.waiting import PATIENCE_S

Result = TypeVar("Result")

PEOPLE: Mapping[str, Role] = {
    "ann": Role.ADMIN,
    "bob": Role.ADMIN,
    "olli": Role.OPERATOR,
    "audrey": Role.AUDITOR,
}
CONTEXT = ChangeContext("prepared", "local")


class ToySealer:
    """Seals so that a test can look inside."""

    def seal(self, text: str) -> str:
        """*text* backwards."""
        return text[::-1]


@dataclass(slots=True)
class PutInForce:
    """Notes the positions that the API waited for, and says `answer`, or raises it."""

    positions: list[Position]
    answer: bool | Exception = True

    async def __call__(self, position: Position) -> bool:
        """Note *position*."""
        self.positions.append(position)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class AdminApi:
    """The API, and everybody's token; every call is made on one event loop."""

    def __init__(
        self,
        runner: asyncio.Runner,
        registry: Registry,
        clock: ManualClock,
        keys: Mapping[str, NewApiKey],
        decision_log: DecisionLog | None = None,
    ) -> None:
        """Serve *registry* and *decision_log*; see `opened`."""
        self.registry = registry
        self.clock = clock
        self.metrics = Metrics(TABLE)
        self.put_in_force = PutInForce([])
        self.keys = keys
        self.context = AdminContext(
            registry,
            LIFECYCLE.catalogue,
            self.metrics,
            self.put_in_force,
            ToySealer(),
            clock,
            clock,
            decision_log=decision_log,
            policy=make_policy(),
        )
        self.app: ASGIApp = build_api(self.context)
        self._runner = runner

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do *work* on the event loop, within a deadline."""

        async def bounded() -> Result:
            async with asyncio.timeout(PATIENCE_S):
                return await work

        return self._runner.run(bounded())

    def token(self, who: str) -> str:
        """The token of *who*."""
        return self.keys[who].api_key

    def call(
        self, method: str, path: str, body: Any = None, who: str = "ann", **given: Any
    ) -> httpx.Response:
        """One call of *who*, '' = without a token; *given* goes to httpx."""
        return self.run(self.calling(method, path, body, who, **given))

    async def calling(
        self, method: str, path: str, body: Any = None, who: str = "ann", **given: Any
    ) -> httpx.Response:
        """As `call`, on the event loop."""
        headers = {"Authorization": f"Bearer {self.token(who)}"} if who else {}
        given["headers"] = {**headers, **given.get("headers", {})}
        if body is not None:
            given["json"] = body
        transport = httpx.ASGITransport(self.app, client=("192.0.2.1", 50_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://admin.example") as client:
            return await client.request(method, path, **given)

    def get(self, path: str, who: str = "ann", **given: Any) -> Any:
        """What a GET that goes well answers."""
        answer = self.call("GET", path, None, who, **given)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def change(
        self, path: str, body: Any = None, who: str = "ann", method: str = "POST", **given: Any
    ) -> Any:
        """What a change that goes well answers."""
        answer = self.call(method, path, body, who, **given)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def refused(self, status: int, code: str, answer: httpx.Response) -> Any:
        """Hold *answer* to be a problem with *status* and *code*, and return its document."""
        assert answer.headers["Content-Type"] == "application/problem+json"
        document = answer.json()
        assert (answer.status_code, document["status"], document["code"]) == (status, status, code), document
        assert document["type"] == f"/problems/{code}"
        assert document["request_id"] == answer.headers["X-Request-Id"]
        return document

    def revision(self) -> str:
        """The registry's revision, which shows whether anything was written."""
        return str(self.run(self.registry.revision()))

    def trail(self) -> list[dict[str, Any]]:
        """Every audit entry, from the first on."""
        lines = self.call("GET", "/v1/audit/export").text.splitlines()
        return [json.loads(json.loads(line)["text"]) for line in lines]

    def create(self, integration_id: str = "acme", **given: Any) -> Any:
        """An integration with one API key, two scopes and an allowlist."""
        body = {
            "id": integration_id,
            "name": "Acme",
            "scopes": ["inventory:read", "inventory:write"],
            "allowlist": ["192.0.2.0/25", "192.0.2.128/25"],
            "issue_credential": True,
            **given,
        }
        return self.change("/v1/integrations", body)


@dataclass(frozen=True, slots=True)
class People:
    """A registry file in which everybody of `PEOPLE` has an account, and their tokens."""

    path: Path
    keys: Mapping[str, NewApiKey]


async def add_people(registry: Registry, keys: Mapping[str, NewApiKey]) -> None:
    """Put `PEOPLE` into an empty registry, with these tokens."""
    ann = Actor("ann", Role.ADMIN, keys["ann"].credential_id)
    for name, role in PEOPLE.items():
        token = NewToken(keys[name].credential_id, keys[name].digest, NOW_US + 90 * DAY_US)
        if name == ann.id:
            first = Bootstrap(administrator_id=name, name=name.title(), token=token)
            await registry.administer(AdminRequest(first, None, CONTEXT))
        else:
            one = CreateAdministrator(administrator_id=name, name=name.title(), role=role, token=token)
            await registry.administer(AdminRequest(one, ann, CONTEXT))


def founded(path: Path) -> People:
    """Make the file at *path*; worlds begin with a copy of it."""
    keys = {name: generate_api_key("sca") for name in PEOPLE}

    async def found() -> None:
        registry = await SqliteRegistry.open(path, LIFECYCLE, clock_us=ManualClock())
        await add_people(registry, keys)
        await registry.aclose()

    asyncio.run(found())
    return People(path, keys)


@contextmanager
def opened(people: People, folder: Path) -> Iterator[AdminApi]:
    """An API of *people*, whose registry and empty decision log are in *folder*."""
    path = folder / "registry.sqlite"
    shutil.copyfile(people.path, path)
    path.chmod(0o600)
    with asyncio.Runner() as runner:
        clock = ManualClock()
        registry = runner.run(SqliteRegistry.open(path, LIFECYCLE, clock_us=clock))
        (folder / "decisions").mkdir()
        log = DecisionLog(folder / "decisions")
        try:
            yield AdminApi(runner, registry, clock, people.keys, log)
        finally:
            log.close()
            runner.run(registry.aclose())
