"""`sidecar version` and `sidecar --version`."""

from __future__ import annotations

import typer

from sidecar.cli.options import JsonOption


def version(json: JsonOption = False) -> None:
    """Print the version."""
    from sidecar.observe.build import PYTHON_VERSION, VERSION

    if json:
        import json as encoder

        typer.echo(encoder.dumps({"version": VERSION, "python": PYTHON_VERSION}))
    else:
        typer.echo(f"sidecar {VERSION} (Python {PYTHON_VERSION})")


def print_version(is_asked: bool) -> None:
    """
    Print the version, for `--version`.

    Raises:
        Exit: the option was given.
    """
    if is_asked:
        version()
        raise typer.Exit
