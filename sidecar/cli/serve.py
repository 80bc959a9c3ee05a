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
    from sidecar.transports.server import Endpoint

DEMO_DIRECTORY = Path(".run/demo")


def serve(
    config: ConfigOption = None,
    demo: Annotated[
        bool,
        typer.Option("--demo", help="Serve a demo configuration with fresh API keys, written if not there."),
    ] = False,
    demo_directory: Annotated[
        Path, typer.Option("--demo-directory", metavar="DIR", help="Where the demo is.")
    ] = DEMO_DIRECTORY,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Listen beside a running sidecar, to replace it. Buckets of 'embedded:' begin full.",
        ),
    ] = False,
) -> None:
    """
    Run the sidecar until SIGTERM or Ctrl-C.

    SIGTERM drains and exits with 0; another one, more than a second later, ends at once, with 1.
    SIGHUP reads the registry and the TLS files again; workers that share a store it replaces one by
    one. Exits with 1 when the configuration or the registry holds a mistake, with 2 when an address
    cannot be listened on.
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
            raise CommandError("--demo brings its own configuration; leave --config out", 2)
        prepared = _prepare(demo_directory)
        raise typer.Exit(
            run(
                replace(load_config(prepared.config), takes_over=take_over),
                lambda grpc, admin: _welcome(prepared, grpc, admin),
            )
        )


def _prepare(directory: Path) -> Demo:
    from sidecar.process.demo import prepare_demo

    try:
        return prepare_demo(directory)
    except OSError as error:
        raise CommandError(f"the demo cannot be written: {error}; choose another --demo-directory") from None


def _welcome(demo: Demo, grpc: tuple[Endpoint, ...], admin: tuple[Endpoint, ...]) -> None:
    """Say where it listens, one API key that works, and what to type next."""
    from sidecar.process.demo import CALLER

    command, key = _own_command(), demo.api_keys[CALLER]
    listening, watching = ", ".join(map(str, grpc)), ", ".join(map(str, admin))
    print(
        f"""
The sidecar serves the demo in {demo.config.parent}/ (sidecar.yaml, registry.yaml, api-keys.json).

  gRPC   {listening}   Envoy's ext_authz, grpc.health.v1
  admin  {watching}   /metrics, /healthz, /readyz
  key    {key}   of the integration {CALLER}

Ask it something, in another terminal:

  {command} ask GET /v1/orders/42 --target {grpc[0]} --key {key}

Add '--count 6' to empty the bucket, or ask for /v1/finance/invoices, which no route opens. A registry that
administrators change while it serves, by commands and an API: docs/operate/control-plane.md. Ctrl-C stops.
""",
        flush=True,
    )


def _own_command() -> str:
    """How this program was started, as it can be typed again."""
    program = Path(sys.argv[0])
    if program.name != "sidecar":
        return "sidecar"
    here = Path.cwd()
    return str(program.relative_to(here)) if program.is_relative_to(here) else str(program)
