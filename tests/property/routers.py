"""
Real routers that serve the route tables of a test: Starlette, nginx, Go's net/http and Express.

Each table is served on a Unix socket of its own; an answer is the number of the route that served the path.
Starlette runs in this process, nginx comes with the tests' packages, the others are there where their
tools are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import Message

from deploy.demo.calling import Client
from deploy.demo.programs import Program
from tests.house.source import ROOT

PROGRAMS = ROOT / "tests" / "fixtures" / "routers"
BUILD_TIMEOUT_S = 300

Table = Sequence[str]
"""Route paths as a configuration writes them, the more specific ones first."""


class RouterServer(Protocol):
    """A router that serves some tables."""

    def route_of(self, table: int, path: str) -> int | None:
        """The number of the route that serves *path* in table number *table*; None = none does."""

    def stop(self) -> None:
        """Stop it."""


class StarletteRouter:
    """Starlette with its defaults, given the path as ASGI servers give it: decoded."""

    def __init__(self, tables: Sequence[Table], folder: Path) -> None:
        """Serve *tables* in this process; *folder* is not needed."""
        self._routers = [Router(self._routes(table)) for table in tables]

    def _routes(self, table: Table) -> list[Route]:
        return [
            Route(unquote(path), _answer_with(number), methods=["GET"])
            for number, pattern in enumerate(table)
            for path in with_tail(pattern, "/{rest:path}")
        ]

    def route_of(self, table: int, path: str) -> int | None:
        """See `RouterServer`."""
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "GET", "path": unquote(path), "raw_path": path.encode(),
            "query_string": b"", "headers": [], "root_path": "",
        }  # fmt: skip
        asyncio.run(self._routers[table](scope, receive, send))
        return int(sent[1]["body"]) if sent[0]["status"] == 200 else None

    def stop(self) -> None:
        """Nothing runs."""


def _answer_with(number: int) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        return PlainTextResponse(str(number))

    return answer


class _OnSockets:
    """A program that serves table number n on `<folder>/n.sock`."""

    def __init__(self, program: Program, folder: Path, tables: int) -> None:
        self._program = program
        sockets = [folder / f"{number}.sock" for number in range(tables)]
        try:
            program.wait_for(lambda: all(map(_accepts, sockets)), "listening")
        except BaseException:
            program.stop()
            raise
        self._clients = [Client(path=str(socket)) for socket in sockets]

    def route_of(self, table: int, path: str) -> int | None:
        """See `RouterServer`."""
        answer = self._clients[table].send("GET", path)
        return int(answer.body) if answer.status == 200 else None

    def stop(self) -> None:
        """Stop the program."""
        for client in self._clients:
            client.close()
        self._program.stop()


def with_tail(pattern: str, tail: str) -> list[str]:
    """*pattern*, and where it ends with '/**' the path before it and that with *tail*."""
    start = pattern.removesuffix("/**")
    return [pattern] if start == pattern else [start or "/", start + tail]


class NginxRouter(_OnSockets):
    """Nginx with one regular expression for each route, in order, compared as *operator* says."""

    def __init__(
        self,
        tables: Sequence[Table],
        folder: Path,
        operator: str = "~",
        param: str = "[^/]+",
        last_slash: str = "",
    ) -> None:
        """Serve *tables*; *param* is the placeholder of a parameter, *last_slash* what may end any path."""
        servers = "".join(
            f"server {{ listen unix:{folder}/{number}.sock; default_type text/plain;\n"
            + "".join(
                f'  location {operator} "{_regex(pattern, param, last_slash)}" {{ return 200 "{index}"; }}\n'
                for index, pattern in enumerate(table)
            )
            + "  location / { return 404; }\n}\n"
            for number, table in enumerate(tables)
        )
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = folder / "nginx.conf"
        config.write_text(
            f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;\n"
            f"events {{}}\nhttp {{ access_log off;\n{temporary}{servers}}}\n"
        )
        command = [str(shutil.which("nginx")), "-p", str(folder), "-e", "stderr", "-c", str(config)]
        super().__init__(Program("nginx", command, folder), folder, len(tables))


def _accepts(path: Path) -> bool:
    """Whether a server listens at *path*; the file alone appears a moment before."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        return True
    return False


def _regex(pattern: str, param: str, last_slash: str) -> str:
    start = pattern.removesuffix("/**")
    segments = [param if part.startswith("{") else re.escape(unquote(part)) for part in start.split("/")]
    tail = "(/.*)?" if start != pattern else last_slash
    return f"^{'/'.join(segments) or ('' if tail == '(/.*)?' else '/')}{tail}$"


class ProgramRouter(_OnSockets):
    """A small program around another language's router."""

    def __init__(
        self,
        tables: Sequence[Table],
        folder: Path,
        command: Sequence[str],
        translate: Callable[[str], list[str]],
    ) -> None:
        """Run *command* on *tables*, whose patterns are written as *translate* says."""
        listed = {
            str(folder / f"{number}.sock"): [translate(pattern) for pattern in table]
            for number, table in enumerate(tables)
        }
        config = folder / "tables.json"
        config.write_text(json.dumps(listed))
        super().__init__(Program("router", [*command, str(config)], folder), folder, len(tables))


def go_router(tables: Sequence[Table], folder: Path) -> RouterServer:
    """Go's `http.ServeMux`."""
    binary = folder / "servemux"
    subprocess.run(
        ["go", "build", "-o", str(binary), str(PROGRAMS / "servemux.go")], check=True, timeout=BUILD_TIMEOUT_S
    )
    return ProgramRouter(tables, folder, [str(binary)], _go_patterns)


def _go_patterns(pattern: str) -> list[str]:
    return [f"{path}{{$}}" if path == "/" else path for path in with_tail(pattern, "/{rest...}")]


def express_router(tables: Sequence[Table], folder: Path) -> RouterServer:
    """Express, version 4 or 5."""
    tail = "/*" if express_version().startswith("4") else "/*rest"
    return ProgramRouter(
        tables,
        folder,
        ["node", str(PROGRAMS / "express.js")],
        lambda pattern: [re.sub(r"\{(\w+)\}", r":\1", path) for path in with_tail(pattern, tail)],
    )


def express_version() -> str:
    """The version of Express that node finds (NODE_PATH counts); '' = it finds none."""
    if shutil.which("node") is None:
        return ""
    found = subprocess.run(
        ["node", "-p", "require('express/package.json').version"], capture_output=True, text=True, timeout=60
    )
    return found.stdout.strip() if found.returncode == 0 else ""


def found_routers() -> Mapping[str, Callable[[Sequence[Table], Path], RouterServer]]:
    """The routers that this machine has, by name; nginx once for each way of writing its locations."""
    found: dict[str, Callable[[Sequence[Table], Path], RouterServer]] = {"starlette": StarletteRouter}
    if shutil.which("nginx"):
        found["nginx"] = NginxRouter
        found["nginx-caseless"] = lambda tables, folder: NginxRouter(tables, folder, "~*", last_slash="/?")
        found["nginx-empty-parameters"] = lambda tables, folder: NginxRouter(tables, folder, param="[^/]*")
    if shutil.which("go"):
        found["go"] = go_router
    if express_version():
        found["express"] = express_router
    return found
