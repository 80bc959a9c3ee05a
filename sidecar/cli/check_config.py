"""`sidecar check-config`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.cli.exits import EXIT_OK, EXIT_REFUSED, report_errors
from sidecar.cli.options import JsonOption

if TYPE_CHECKING:
    from sidecar.process.checking import CheckedConfig
    from sidecar.process.config import Config
    from sidecar.process.online_check import OnlineReport
    from sidecar.process.wiring import LoadedConfig
    from sidecar.sources.file_faults import FileFault


def check_config(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="The configuration file. Default: sidecar.yaml in this directory if there is one.",
        ),
    ] = None,
    online: Annotated[
        bool,
        typer.Option(
            "--online", help="Also check that the shared store is reachable and configured correctly."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """
    Check a configuration and the files that it names, without starting the sidecar.

    Reads the configuration (overridden by the environment, as `serve` does), the registry, the rate-limit
    files, the keys and the TLS files, checks the addresses to listen on, and reports everything that
    `serve` would refuse.
    Does not check whether a port is in use. Exits with 1 after listing every mistake.
    """
    if json:
        raise typer.Exit(_print_json(file, online))
    with report_errors():
        checked, report = _check(file, online)
    _print_summary(checked, report)


def _check(file: Path | None, online: bool) -> tuple[CheckedConfig, OnlineReport]:
    from sidecar.process.checking import check
    from sidecar.process.online_check import OnlineReport, ask_store

    checked = check(file)
    if not online:
        return checked, OnlineReport((), ())
    import asyncio

    return checked, asyncio.run(ask_store(checked.loaded.config))


def _print_json(file: Path | None, online: bool) -> int:
    """Print the result as JSON; return the exit code."""
    import json

    from sidecar.sources.file_faults import FileFaultsError

    found: dict[str, object] = {"is_valid": True, "mistakes": [], "mistakes_total": 0}
    try:
        checked, report = _check(file, online)
    except FileFaultsError as error:
        found |= {"is_valid": False, "mistakes_total": error.total}
        found["mistakes"] = [fault._asdict() for fault in error.faults]
    else:
        found["warnings"] = [str(warning) for warning in _warnings(checked, report)]
        found["summary"] = dict(_rows(checked.loaded, report))
    typer.echo(json.dumps(found, indent=2))
    return EXIT_OK if found["is_valid"] else EXIT_REFUSED


def _print_summary(checked: CheckedConfig, report: OnlineReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # show a long path in full
    for name, value in _rows(checked.loaded, report):
        table.add_row(name, value)
    console = Console(soft_wrap=True, highlight=False)
    console.print("[green]No mistakes.[/green]")
    console.print(table)
    for warning in _warnings(checked, report):
        console.print(f"warning: {warning}", style="yellow", markup=False)


def _warnings(checked: CheckedConfig, report: OnlineReport) -> tuple[FileFault | str, ...]:
    return (*checked.warnings, *_policies_without_effect(checked.loaded), *report.warnings)


def _rows(loaded: LoadedConfig, report: OnlineReport) -> list[tuple[str, str]]:
    """The effective configuration, as names and values."""
    from sidecar.process.settings import LISTEN_KINDS

    config = loaded.config
    rows = [
        ("configuration", config.tree.file),
        *((kind.replace("grpc", "gRPC"), _addresses(config, kind)) for kind in LISTEN_KINDS),
        ("workers", _workers(config)),
        ("store", _store(config)),
    ]
    if report.facts:
        rows.append(("store says", ", ".join(report.facts)))
    if loaded.shared_url is not None:
        rows.append(("without store", _without_store(loaded)))
    rows += [("routes", str(len(config.settings.routes))), ("registry", _registry(config, loaded))]
    return rows


def _addresses(config: Config, kind: str) -> str:
    from sidecar.process.listeners import endpoints

    transport = f"  (transport: {config.settings.transport})" if kind == "grpc" else ""
    return (
        ", ".join(f"{endpoint}{' (TLS)' if endpoint.tls else ''}" for endpoint in endpoints(config, kind))
        + transport
        or "off"
    )


def _workers(config: Config) -> str:
    from sidecar.process.operating_system import worker_count

    workers = config.settings.workers
    return f"auto: {worker_count(workers)} on this machine" if workers == "auto" else str(workers)


def _store(config: Config) -> str:
    url = config.shared_store
    if url is None:
        return "embedded: in the memory of this process"
    return f"{url}  (timeout {config.settings.store_timeout_ms} ms)"


_POLICIES = {
    "deny": "requests are refused with 503",
    "allow": "requests are allowed without a limit",
    "local": "each sidecar grants its share of the limit",
}


def _without_store(loaded: LoadedConfig) -> str:
    """The policy while the shared store is unavailable."""
    policy = loaded.config.settings.on_store_error
    own = _own_policies(loaded) if loaded.source is not None else "each may have its own; not checked here"
    return f"on_store_error {policy}: {_POLICIES[policy]}" + (f"  (integrations: {own})" if own else "")


def _policies_without_effect(loaded: LoadedConfig) -> list[str]:
    own = _own_policies(loaded)
    if not own or loaded.shared_url is not None:
        return []
    return [f"on_store_error of integrations ({own}) has no effect: the store is embedded and always answers"]


def _own_policies(loaded: LoadedConfig) -> str:
    """The number of integrations in the registry file with their own policy, by policy."""
    records = [integration.record for integration in loaded.registry.snapshot.integrations.values()]
    own = Counter(record.on_store_error.value for record in records if record.on_store_error is not None)
    return ", ".join(f"{count} {policy}" for policy, count in sorted(own.items()))


def _registry(config: Config, loaded: LoadedConfig) -> str:
    if loaded.shared_url is not None and loaded.source is None:
        return f"in the store at {loaded.shared_url}; --online checks it"
    if config.registry_database is not None:
        state = "exists" if config.registry_database.exists() else "created at the first start"
        return f"{config.registry_database}, changed by administrators ({state})"
    if loaded.source is None:
        return "none: every API key is refused"
    snapshot = loaded.registry.snapshot
    return (
        f"{loaded.source.file}: {len(snapshot.integrations)} integrations,"
        f" {len(snapshot.credentials)} credentials"
    )
