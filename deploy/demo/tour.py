"""The demo: starts the programs, runs the scenes, shows the answers, stops the programs."""

from __future__ import annotations

import shutil
import tempfile
import textwrap
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from deploy.demo.calling import Answer, send
from deploy.demo.envoy import TCP_CONFIG, Envoy, running_envoy
from deploy.demo.programs import raise_if_interrupted
from deploy.demo.proxies import KINDS, Proxy
from deploy.demo.scenes import Cast, Scene, scenes
from deploy.demo.sidecar import FINANCE, ROUTES, ReservedPort, Sidecar, write_registry
from deploy.demo.upstream import running_upstream

PROXIES = ("envoy", *KINDS)
TEXT_WIDTH = 76
KEY_SHOWN_LENGTH = 15
"""Displayed characters of an API key: the prefix and the public credential id."""


class UnexpectedAnswerError(Exception):
    """An answer differs from the expected one."""


def run(console: Console, proxy_name: str) -> None:
    """
    Run the demo with one of `PROXIES`; always stop all programs.

    Raises:
        InterruptedByUserError: the user interrupted the demo.
        UnexpectedAnswerError: an answer was unexpected; all scenes have run.
        ProgramError: a program did not start.
    """
    with ExitStack() as stage:
        folder = Path(tempfile.mkdtemp(prefix="sidecar-demo-"))
        stage.callback(shutil.rmtree, folder)
        cast = Cast()
        registry = folder / "registry.yaml"
        write_registry(registry, cast.registered)
        app_port = stage.enter_context(running_upstream())
        with console.status(f"Starting the sidecar and {proxy_name} ..."):
            sidecar = _start_sidecar(stage, folder, registry, proxy_name)
            proxy: Envoy | Proxy
            if proxy_name == "envoy":
                proxy = stage.enter_context(running_envoy(TCP_CONFIG, app_port, sidecar.address, folder))
            else:
                proxy = stage.enter_context(Proxy(proxy_name, app_port, sidecar.http, folder))
        _introduce(console, proxy, sidecar, app_port)
        unexpected = [
            fault
            for number, scene in enumerate(scenes(cast), 1)
            if (fault := _play(console, number, scene, proxy.port))
        ]
        _count(console, sidecar)
    console.print("\nThe proxy, the sidecar and the API are stopped.")
    if unexpected:
        raise UnexpectedAnswerError("\n".join(unexpected))
    console.print("[green]All answers were as expected.[/]")


def _start_sidecar(stage: ExitStack, folder: Path, registry: Path, proxy_name: str) -> Sidecar:
    ports = [ReservedPort(), ReservedPort()]
    for port in ports:
        stage.callback(port.close)
    grpc, http = (f"127.0.0.1:{port.number}" for port in ports)
    if proxy_name == "envoy":
        return stage.enter_context(Sidecar(folder, grpc, registry))
    # The other proxies send the address of their peer, and leave scopes to the sidecar's routes.
    settings: dict[str, Any] = {"client_ip": "peer", "routes": [*ROUTES, FINANCE]}
    return stage.enter_context(Sidecar(folder, grpc, registry, http=http, **settings))


def _introduce(console: Console, proxy: Envoy | Proxy, sidecar: Sidecar, app_port: int) -> None:
    if isinstance(proxy, Envoy):
        version = "Envoy " + proxy.admin("/server_info").json()["version"].split("/")[1]
        config, asked = TCP_CONFIG.name, sidecar.address
    else:
        version, config, asked = proxy.version(), KINDS[proxy.name].file, f"http://{sidecar.http}"
    console.print(f"[bold]{version}[/] listens on http://127.0.0.1:{proxy.port} ({config}),")
    console.print(f"checks each request with the [bold]sidecar[/] on {asked}, and forwards")
    console.print(
        f"allowed requests to an [bold]API[/] on 127.0.0.1:{app_port} that answers with the request."
    )


def _play(console: Console, number: int, scene: Scene, port: int) -> str:
    """Run one scene; return what was unexpected, or ''."""
    raise_if_interrupted()
    console.print(f"\n[bold]{number}. {scene.title}[/]")
    for line in textwrap.wrap(scene.story, TEXT_WIDTH):
        console.print(f"   {escape(line)}")
    key = [] if scene.owner is None else scene.owner.headers
    answers = [send(port, scene.method, scene.path, key) for _ in range(scene.times)]
    for line in (*_request(scene, port), *_repeats(answers), *_answer(scene, answers[-1])):
        console.print(line, soft_wrap=True)
    return _fault(number, scene, answers)


def _request(scene: Scene, port: int) -> list[str]:
    key = scene.owner.key.api_key[:KEY_SHOWN_LENGTH] + "..."
    return [f"   [cyan]$ curl -i -H 'x-api-key: {key}' 'http://127.0.0.1:{port}{escape(scene.path)}'[/]"]


def _repeats(answers: list[Answer]) -> list[str]:
    if len(answers) == 1:
        return []
    statuses = ", ".join(str(answer.status) for answer in answers[:-1])
    return [f"   the first {len(answers) - 1} answers: {statuses}; the last answer:"]


def _answer(scene: Scene, answer: Answer) -> list[str]:
    color = "green" if answer.status < 400 else "yellow"
    lines = [f"   [{color}]{answer.status} {HTTPStatus(answer.status).phrase}[/]"]
    for name in scene.headers:
        for value in answer.all(name):
            lines.append(f"   {name}: {escape(value)}{_in_words(name, value)}")
    if answer.status < 400:
        lines.append("   the API received these identity headers and no API key:")
        received = answer.json()["headers"]
        lines += [f"     {name}: {escape(value)}" for name, value in received if name in scene.upstream]
    else:
        lines += [f"   {escape(line)}" for line in textwrap.wrap(answer.json()["detail"], TEXT_WIDTH)]
    return lines


def _in_words(name: str, value: str) -> str:
    """Return an explanation of a number in a header."""
    if name == "x-ratelimit-reset":
        reset_at = datetime.fromtimestamp(int(value), UTC)
        seconds = max(0, int(value) - int(time.time()))
        return f"   [dim]<- in {seconds} s, at {reset_at:%H:%M:%S} UTC, the full burst is available again[/]"
    if name == "retry-after":
        return f"   [dim]<- the next request is allowed in {value} s[/]"
    return ""


def _fault(number: int, scene: Scene, answers: list[Answer]) -> str:
    """Return how the answers differ from the expected ones, or ''."""
    last = answers[-1]
    statuses = [answer.status for answer in answers]
    expected = [200] * (len(answers) - 1) + [scene.status]
    reason = "".join(last.all("x-auth-reason"))
    missing = [name for name in scene.headers if len(last.all(name)) != 1]
    if scene.owner.key.api_key.encode() in last.body:
        return f"scene {number}, {scene.title}: the API received the API key"
    if (statuses, reason, missing) == (expected, scene.reason, []):
        return ""
    return (
        f"scene {number}, {scene.title}: expected {expected} {scene.reason or 'allowed'},"
        f" got {statuses} {reason or 'allowed'}; missing headers: {', '.join(missing) or 'none'}"
    )


def _count(console: Console, sidecar: Sidecar) -> None:
    """Show the sidecar's counters of decisions."""
    console.print("\n[bold]Decisions of the sidecar[/] (/metrics)")
    for line in sidecar.admin("/metrics").body.decode().splitlines():
        if line.startswith("sidecar_decisions_total{") and not line.endswith(" 0.0"):
            console.print(f"   {escape(line.removesuffix('.0'))}", soft_wrap=True)
