"""The command `sidecar` with `serve`: all that a serving process imports of the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from sidecar.cli.options import JsonOption
from sidecar.cli.serve import serve

app = typer.Typer(
    name="sidecar",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A rate-limit and auth decision service for API proxies.",
    epilog="Exit codes: 0 success, 1 invalid or refused, 2 wrong usage or address in use, 3 denied,"
    " 4 conflict with the current state, 5 done but not confirmed in time.",
)


def version(json: JsonOption = False) -> None:
    """Print the version, and whether the build is pure or compiled."""
    from sidecar.observe.build import BUILD, PYTHON_VERSION, VERSION

    if json:
        import json as encoder

        typer.echo(encoder.dumps({"version": VERSION, "python": PYTHON_VERSION, "build": BUILD}))
    else:
        typer.echo(f"sidecar {VERSION} (Python {PYTHON_VERSION}, {BUILD})")


def _print_version(is_requested: bool) -> None:
    if is_requested:
        version()
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """A rate-limit and auth decision service for API proxies."""


app.command()(serve)
