"""The root of the command line: registers every command, and prints the version."""

from __future__ import annotations

from typing import Annotated

import typer

from sidecar.cli import (
    activity,
    admin,
    allowlist,
    apply,
    ask,
    audit,
    check_config,
    credentials,
    decide,
    decisions,
    doctor,
    integrations,
    keys,
    limit,
    logs,
    registry,
    review,
    scopes,
    serve,
    sidecars,
    simulate,
    suspend,
    verify_limits,
    webhook_secret,
)
from sidecar.cli.admin_command import ADMINISTRATION
from sidecar.cli.options import JsonOption

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
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """A rate-limit and auth decision service for API proxies."""


app.command()(serve.serve)
app.command("check-config")(check_config.check_config)
app.command()(doctor.doctor)
app.command()(decide.decide)
app.command()(ask.ask)
app.command()(simulate.simulate)
app.add_typer(keys.app, name="keys")
app.command("verify-limits")(verify_limits.verify_limits)
# The old name works until 0.2. Typer declares bool, but Click accepts the text of the warning.
app.command("conformance", hidden=True, deprecated="use `sidecar verify-limits`")(verify_limits.verify_limits)  # type: ignore[arg-type]
app.command()(version)

app.add_typer(integrations.app, name="integrations", rich_help_panel=ADMINISTRATION)
app.add_typer(credentials.app, name="credentials", rich_help_panel=ADMINISTRATION)
suspend.add_to(app)
apply.add_to(app)
app.add_typer(scopes.app, name="scopes", rich_help_panel=ADMINISTRATION)
app.add_typer(limit.app, name="limit", rich_help_panel=ADMINISTRATION)
app.add_typer(allowlist.app, name="allowlist", rich_help_panel=ADMINISTRATION)
app.add_typer(webhook_secret.app, name="webhook-secret", rich_help_panel=ADMINISTRATION)
app.add_typer(audit.app, name="audit", rich_help_panel=ADMINISTRATION)
app.add_typer(registry.app, name="registry", rich_help_panel=ADMINISTRATION)
app.add_typer(admin.app, name="admin", rich_help_panel=ADMINISTRATION)
activity.add_to(app)
logs.add_to(app)
app.add_typer(decisions.app, name="decisions", rich_help_panel=ADMINISTRATION)
review.add_to(app)
sidecars.add_to(app)
