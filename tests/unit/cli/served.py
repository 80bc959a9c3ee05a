"""The real admin API on a real socket, over a registry file, in a separate thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from typer.testing import CliRunner, Result

from sidecar.admin_client.address import parse_server
from sidecar.admin_client.client import AdminClient
from sidecar.cli.root import app
from sidecar.domain.administrators import Bootstrap, CreateAdministrator, NewToken
from sidecar.domain.api_keys import generate_api_key
from sidecar.domain.changes import AdminRequest, ChangeContext, Position, Revision
from sidecar.domain.roles import Actor, Role
from sidecar.observe.metrics import Metrics
from sidecar.observe.table import TABLE
from sidecar.services.admin.api import build_api
from sidecar.services.admin.context import AdminContext
from sidecar.services.admin.decision_log import DecisionLog
from sidecar.stores.clocks import wall_clock_us
from sidecar.stores.registry.sqlite.registry import SqliteRegistry
from sidecar.transports.http1 import HttpServer
from sidecar.transports.http1.asgi import serve_asgi
from sidecar.transports.http1.work import OWN_LOOP
from sidecar.transports.server import Endpoint
from tests.administration import DAY_US, LIFECYCLE
from tests.building import make_policy
from tests.waiting import PATIENCE_S

Value = TypeVar("Value")

PEOPLE: Mapping[str, Role] = {
    "ann": Role.ADMIN,
    "bob": Role.ADMIN,
    "olli": Role.OPERATOR,
    "audrey": Role.AUDITOR,
}


class PlainSealer:
    """Keeps a webhook secret without its look; nobody signs in these tests."""

    def seal(self, text: str) -> str:
        """*text* backwards."""
        return text[::-1]


@dataclass
class ServedApi:
    """A running API: its address and decision log, everybody's token, and how to run commands against it."""

    url: str
    registry: SqliteRegistry
    loop: asyncio.AbstractEventLoop
    decisions: Path
    tokens: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, who: str = "ann", stdin: str = "", **environment: str) -> Result:
        """Run one command as *who*."""
        env = {"SIDECAR_SERVER": self.url, "SIDECAR_ADMIN_TOKEN": self.tokens[who], **environment}
        return CliRunner().invoke(app, list(arguments), input=stdin, env=env)

    def output(self, *arguments: str, who: str = "ann") -> str:
        """What a command that goes well prints on standard output."""
        result = self.run(*arguments, who=who)
        assert result.exit_code == 0, result.output
        return result.stdout

    def client(self, who: str = "ann", timeout_s: float = PATIENCE_S) -> AdminClient:
        """A client of *who*, to be closed."""
        return AdminClient(parse_server(self.url), self.tokens[who], timeout_s=timeout_s)

    def wait(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Do *work* on the loop of the API."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    def announce(self, sidecar_id: str, revision: Revision) -> None:
        """Let a sidecar say that it has followed the registry so far."""
        self.wait(self.registry.announce(sidecar_id, revision))


async def _at_once(position: Position) -> bool:
    return True


@contextmanager
def served_api(folder: Path) -> Iterator[ServedApi]:
    """The API over a fresh registry file in *folder*, with `PEOPLE`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="admin API")
    thread.start()

    def wait(work: Coroutine[Any, Any, Value]) -> Value:
        return asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE_S)

    registry = wait(SqliteRegistry.open(folder / "registry.sqlite", LIFECYCLE))
    metrics = Metrics(TABLE)
    (folder / "decisions").mkdir()
    log = DecisionLog(folder / "decisions")
    context = AdminContext(
        registry,
        LIFECYCLE.catalogue,
        metrics,
        _at_once,
        PlainSealer(),
        wall_clock_us,
        decision_log=log,
        policy=make_policy(),
    )
    server = HttpServer(partial(serve_asgi, build_api(context)), [Endpoint("127.0.0.1")], metrics, OWN_LOOP)
    try:
        [endpoint] = wait(server.start())
        served = ServedApi(f"http://{endpoint}", registry, loop, log.reader.folder)
        wait(_add_people(served))
        yield served
    finally:
        wait(server.drain())
        log.close()
        wait(registry.aclose())
        _stop(loop, thread)


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    stop: Callable[[], None] = loop.stop
    loop.call_soon_threadsafe(stop)
    thread.join(PATIENCE_S)
    loop.close()


async def _add_people(served: ServedApi) -> None:
    context = ChangeContext("prepared", "local")
    first: Actor | None = None
    for name, role in PEOPLE.items():
        key = generate_api_key("sca")
        token = NewToken(key.credential_id, key.digest, wall_clock_us() + 90 * DAY_US)
        command = (
            Bootstrap(administrator_id=name, name=name.title(), token=token)
            if first is None
            else CreateAdministrator(administrator_id=name, name=name.title(), role=role, token=token)
        )
        await served.registry.administer(AdminRequest(command, first, context))
        first = first or Actor(name, role, key.credential_id)
        served.tokens[name] = key.api_key
