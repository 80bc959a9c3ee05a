"""`sidecar admin`: administrators and their tokens."""

from __future__ import annotations

import typer

from sidecar.cli import admin_accounts
from sidecar.cli.admin_bootstrap import bootstrap, recover

app = typer.Typer(no_args_is_help=True, help="Administrators and their tokens.")


@app.callback()
def admin() -> None:
    """Administrators and their tokens."""


app.command()(bootstrap)
app.command()(recover)
admin_accounts.add_to(app)
