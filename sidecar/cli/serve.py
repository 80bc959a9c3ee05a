"""`sidecar serve`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.cli.exits import CommandError, report_errors
from sidecar.cli.options import ConfigOption

if TYPE_CHECKING:
    from sidecar.process.demo import Demo
    from sidecar.process.listeners import Served

DEMO_DIRECTORY = Path(".run/demo")


def serve(
    config: ConfigOption = None,
    demo: Annotated[
        bool,
        typer.Option("--demo", help="Serve a demo configuration with new API keys; creates it if needed."),
    ] = False,
    demo_directory: Annotated[
        Path, typer.Option("--demo-directory", metavar="DIR", help="The directory of the demo.")
    ] = DEMO_DIRECTORY,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Listen in parallel with a running sidecar, to replace it. Embedded buckets start full.",
        ),
    ] = False,
) -> None:
    """
    Run the sidecar until SIGTERM or Ctrl-C.

    SIGTERM drains and exits with 0; a second SIGTERM, more than one second later, stops at once and exits
    with 1. SIGHUP reloads the registry and the TLS files, and replaces workers that share a store one by
    one. Exits with 1 if the configuration or the registry is invalid, with 2 if an address cannot be
    listened on.
    """
    with report_errors():
        from sidecar.process.config import load_config
        from sidecar.process.serve import serve as run

        if not demo:
            raise typer.Exit(
                run(
                    replace(load_config(config), takes_over=take_over),
                    reload=lambda: replace(load_config(config), takes_over=take_over),
                )
            )
        if config is not None:
            raise CommandError("--demo has its own configuration; leave --config out", 2)
        prepared = _prepare(demo_directory)
        raise typer.Exit(
            run(
                replace(load_config(prepared.config), takes_over=take_over),
                lambda served: _welcome(prepared, served),
            )
        )


def _prepare(directory: Path) -> Demo:
    from sidecar.process.demo import prepare_demo

    try:
        return prepare_demo(directory)
    except OSError as error:
        raise CommandError(f"the demo cannot be written: {error}; choose another --demo-directory") from None


def _welcome(demo: Demo, served: Served) -> None:
    """Print the addresses, a valid API key, and a command to try."""
    from sidecar.process.demo import CALLER

    command, key = _own_command(), demo.api_keys[CALLER]
    addresses = {kind: ", ".join(map(str, endpoints)) or "none" for kind, endpoints in served.items()}
    print(
        f"""
The sidecar serves the demo in {demo.config.parent}/ (sidecar.yaml, registry.yaml, api-keys.json).

  gRPC   {addresses["grpc"]}   Envoy's ext_authz, grpc.health.v1
  HTTP   {addresses["http"]}   forward auth for nginx, Caddy, HAProxy, Traefik
  admin  {addresses["admin"]}   /metrics, /healthz, /readyz
  key    {key}   of the integration {CALLER}

Try it in another terminal:

  {command} ask GET /v1/orders/42 --target {served["grpc"][0]} --key {key}

Add '--count 6' to empty the bucket, or ask for /v1/finance/invoices, which has no route. A few seconds later,
list the decisions:

  {command} logs --log {demo.config.parent / "decisions"}

To administer the registry by commands and an API, see docs/operate/control-plane.md. Press Ctrl-C to stop.
""",
        flush=True,
    )


def _own_command() -> str:
    """The command that started this program, as a user would type it."""
    program = Path(sys.argv[0])
    if program.name != "sidecar":
        return "sidecar"
    here = Path.cwd()
    return str(program.relative_to(here)) if program.is_relative_to(here) else str(program)
