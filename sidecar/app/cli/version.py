"""`sidecar version`."""

from __future__ import annotations

import typer


def version() -> None:
    """Print which build this is."""
    from sidecar.observe.build import PYTHON_VERSION, VERSION

    typer.echo(f"sidecar {VERSION} (Python {PYTHON_VERSION})")
