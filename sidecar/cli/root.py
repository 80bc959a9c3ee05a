"""The root of the command line: registers every command."""

from __future__ import annotations

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
    sidecars,
    simulate,
    suspend,
    verify_limits,
    webhook_secret,
)
from sidecar.cli.admin_command import ADMINISTRATION
from sidecar.cli.serving import app as app
from sidecar.cli.serving import version

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
