"""The root of the command line: which commands there are."""

from __future__ import annotations

import typer

from sidecar.app.cli import admin, ask, check_config, decide, keys, serve, version

app = typer.Typer(
    name="sidecar",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A rate-limit and auth decision service for API proxies.",
    epilog="Exit codes: 0 fine, 1 invalid or refused, 2 wrong usage or an address in use, 3 denied.",
)
app.command()(serve.serve)
app.command("check-config")(check_config.check_config)
app.command()(decide.decide)
app.command()(ask.ask)
app.add_typer(keys.app, name="keys")
app.add_typer(admin.app, name="admin")
app.command()(version.version)
