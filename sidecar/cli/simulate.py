"""`sidecar simulate`: what a changed record or other routes would have decided about logged requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sidecar.cli.exits import EXIT_USAGE, CommandError, report_errors
from sidecar.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from sidecar.domain.integrations import Integration
    from sidecar.process.wiring import LoadedConfig


def simulate(
    integration: Annotated[
        str, typer.Option("--integration", metavar="ID", help="The integration whose requests are replayed.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A changed field, such as limit=120 or scopes=orders:read,crm:read; may be repeated.",
        ),
    ] = None,
    config: ConfigOption = None,
    log: Annotated[
        Path | None,
        typer.Option("--log", metavar="DIR", help="The decision log. Default: the configured one."),
    ] = None,
    since: Annotated[
        str,
        typer.Option("--since", metavar="WHEN", help="The start: 2026-12-01T00:00Z, or 7d = seven days ago."),
    ] = "24h",
    until: Annotated[
        str, typer.Option("--until", metavar="WHEN", help="The end, likewise. Default: now.")
    ] = "0s",
    json: JsonOption = False,
) -> None:
    """
    Replay logged requests against a changed record, and show whom it would newly refuse or admit.

    Reads the decision log, and the record from the registry of the configuration; changes nothing. To try
    other routes, pass a configuration that has them. Requests are replayed from the point after the API key
    was accepted. The result says if rows are missing in the log.
    """
    with report_errors():
        from sidecar.process.config import load_config
        from sidecar.process.wiring import LoadedConfig

        loaded = LoadedConfig(load_config(config))
        from_us, until_us = _past_us("--since", since), _past_us("--until", until)
        if from_us >= until_us:
            raise CommandError(f"--since {since} is not before --until {until}", EXIT_USAGE)
        shown = _simulated(loaded, _folder(loaded, log), integration, (from_us, until_us), set_ or [])
    if json:
        import json as encoder

        typer.echo(encoder.dumps(shown, indent=2))
    else:
        _print(shown)


def _simulated(
    loaded: LoadedConfig, folder: Path, integration_id: str, times_us: tuple[int, int], set_: list[str]
) -> dict[str, Any]:
    """Run the simulation; return its result as JSON."""
    from sidecar.domain.replay import Replay
    from sidecar.process import simulation as s
    from sidecar.stores.clocks import wall_clock_us
    from sidecar.stores.decisions.queries import DecisionLogError
    from sidecar.stores.decisions.reader import DecisionReader

    try:
        settings = s.parse_settings(set_)
    except s.SettingError as error:
        raise CommandError(f"--set {error}", EXIT_USAGE) from None
    stored = _record(loaded, integration_id)
    record = s.changed_record(stored, settings, loaded.rules.catalogue, wall_clock_us())
    replay = Replay(loaded.rules.policy, record)
    span = s.LogSpan(integration_id, *times_us)
    has_own_buckets = loaded.shared_url is None
    try:
        result = s.simulate(DecisionReader(folder), span, replay, has_own_buckets=has_own_buckets)
    except DecisionLogError as error:
        raise CommandError(str(error)) from None
    return s.as_plain_data(result, settings)


def _folder(loaded: LoadedConfig, log: Path | None) -> Path:
    """The folder of the decision log."""
    configured = loaded.config.settings.decision_log.path
    if log is not None:
        return log
    if configured is None:
        raise CommandError("no decision log: set 'decision_log' in the configuration, or pass --log DIR")
    return loaded.config.path(configured)


def _past_us(option: str, text: str) -> int:
    """The time *text* in µs since the epoch; a duration counts back from now."""
    from datetime import datetime

    from sidecar.cli.times import moment_ago

    return round(datetime.fromisoformat(moment_ago(option, text)).timestamp() * 1_000_000)


def _record(loaded: LoadedConfig, integration_id: str) -> Integration:
    """The stored record of the integration, from the configured registry."""
    if loaded.config.has_control_plane:
        import asyncio

        record = asyncio.run(_registry_record(loaded, integration_id))
    else:
        compiled = loaded.registry.snapshot.integrations.get(integration_id)
        record = None if compiled is None else compiled.record
    if record is None:
        raise CommandError(f"no integration {integration_id[:80]!r} in the registry of the configuration")
    return record


async def _registry_record(loaded: LoadedConfig, integration_id: str) -> Integration | None:
    from sidecar.process.control_plane import registry_of
    from sidecar.stores.registry.protocol import RegistryError

    registry = await registry_of(loaded.config)
    try:
        return await registry.get(integration_id)
    except RegistryError as error:
        raise CommandError(f"the registry cannot be read: {error}") from None
    finally:
        await registry.aclose()


def _print(shown: dict[str, Any]) -> None:
    from sidecar.cli.tables import Column, print_fields, print_table
    from sidecar.cli.times import shown as time_shown

    print_fields(
        [
            ("integration", shown["integration"]),
            ("from", time_shown(shown["from"])),
            ("until", time_shown(shown["until"])),
            ("requests", shown["rows"]),
            ("refused in the log", shown["refused_logged"]),
            ("refused in the simulation", shown["refused_simulated"]),
            ("newly refused", shown["newly_refused"]),
            ("newly admitted", shown["newly_admitted"]),
        ]
    )
    typer.echo()
    columns = [
        Column("logged"),
        Column("simulated"),
        Column("API key", is_whole=True),
        Column("requests", is_number=True),
        Column("first", is_whole=True),
        Column("last", is_whole=True),
        Column("worst hour", is_whole=True),
        Column("in it", is_number=True),
        Column("first decision", is_whole=True),
    ]
    print_table(columns, map(_row, shown["changes"]), "no request would be decided otherwise")
    for note in _notes(shown):
        typer.echo(f"note: {note}", err=True)


def _row(change: dict[str, Any]) -> tuple[object, ...]:
    from sidecar.cli.times import shown as time_shown

    times = [time_shown(change[name]) for name in ("first", "last", "worst_hour")]
    return (
        change["was"], change["becomes"], change["credential"], change["count"], *times,
        change["worst_hour_count"], change["first_decision_id"],
    )  # fmt: skip


def _notes(shown: dict[str, Any]) -> list[str]:
    """What limits the result."""
    notes = []
    if shown["in_shadow"]:
        notes.append(
            f"rules in shadow refuse nothing, in the simulation too: {', '.join(shown['in_shadow'])};"
            " add --set shadow= to enforce those of the integration"
        )
    if shown["missing"]:
        notes.append(
            f"the result is incomplete: rows of the log are missing in {len(shown['missing'])} spans of this"
            " time; --json lists them"
        )
    if shown["rows_unread"]:
        notes.append(
            f"the result is incomplete: {shown['rows_unread']} rows were left out, because the clocks of"
            " store and sidecar differ by more than an hour"
        )
    if shown["rows_kept"]:
        notes.append(
            f"{shown['rows_kept']} requests keep their logged outcome: the log does not have what another"
            " decision needs"
        )
    if shown["rows_of_other_generations"]:
        notes.append(
            f"{shown['rows_of_other_generations']} requests were decided by other versions of the record, so"
            " some differences may come from changes made since"
        )
    if shown["uncounted_changes"]:
        notes.append(f"{shown['uncounted_changes']} more requests would change, in ways that are not listed")
    return notes
