"""`sidecar check-config`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.app.cli.exits import telling_mistakes

if TYPE_CHECKING:
    from sidecar.app.config import Config
    from sidecar.app.wiring import LoadedConfig


def check_config(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="The configuration file. Default: sidecar.yaml in this directory if there is one.",
        ),
    ] = None,
) -> None:
    """
    Check a configuration with everything that it names, without running it.

    Reads the configuration (with the environment on top, as `serve` does), the registry and the TLS
    files, and looks for routes that can never match. Exits with 1 after naming every mistake.
    """
    with telling_mistakes():
        from sidecar.app.checking import check

        loaded = check(file)
    _print_summary(loaded.config, loaded)


def _print_summary(config: Config, loaded: LoadedConfig) -> None:
    from rich.console import Console
    from rich.table import Table

    settings = config.settings
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a long path is told whole
    table.add_row("configuration", config.tree.file)
    table.add_row("gRPC", _addresses(config, "grpc") + f"  (transport: {settings.transport})")
    table.add_row("admin", _addresses(config, "admin"))
    table.add_row("metrics", _addresses(config, "metrics"))
    table.add_row("workers", _workers(config))
    table.add_row("store", _store(config))
    if loaded.shared_url is not None:
        table.add_row("without store", _without_store(loaded))
    table.add_row("routes", str(len(settings.routes)))
    table.add_row("registry", _registry(config, loaded))
    console = Console(soft_wrap=True, highlight=False)
    console.print("[green]No mistakes.[/green]")
    console.print(table)
    for warning in (*loaded.rules.warnings, *loaded.registry.warnings, *_policies_without_effect(loaded)):
        console.print(f"warning: {warning}", style="yellow", markup=False)


def _addresses(config: Config, kind: str) -> str:
    from sidecar.app.wiring import endpoints

    return ", ".join(f"{one}{' (TLS)' if one.tls else ''}" for one in endpoints(config, kind)) or "off"


def _workers(config: Config) -> str:
    from sidecar.app.supervisor.cpus import worker_count

    workers = config.settings.workers
    return f"auto: {worker_count(workers)} here" if workers == "auto" else str(workers)


def _store(config: Config) -> str:
    url = config.settings.shared_store
    if url is None:
        return "embedded: in the memory of this process"
    return f"{url}  (waited for {config.settings.store_timeout_ms} ms)"


_POLICIES = {
    "deny": "requests are refused with 503",
    "allow": "requests are let in, and no limit is looked at",
    "local": "each sidecar grants its share of the limit",
}


def _without_store(loaded: LoadedConfig) -> str:
    """What answers while the shared store cannot."""
    policy = loaded.config.settings.on_store_error
    own = _own_policies(loaded) if loaded.source is not None else "each may have another; not asked here"
    return f"on_store_error {policy}: {_POLICIES[policy]}" + (f"  (integrations: {own})" if own else "")


def _policies_without_effect(loaded: LoadedConfig) -> list[str]:
    own = _own_policies(loaded)
    if not own or loaded.shared_url is not None:
        return []
    return [f"on_store_error of integrations ({own}) has no effect: the store is embedded and always answers"]


def _own_policies(loaded: LoadedConfig) -> str:
    """How many integrations of the registry file have which policy of their own."""
    records = [one.record for one in loaded.registry.snapshot.integrations.values()]
    own = Counter(one.on_store_error.value for one in records if one.on_store_error is not None)
    return ", ".join(f"{count} {policy}" for policy, count in sorted(own.items()))


def _registry(config: Config, loaded: LoadedConfig) -> str:
    if loaded.shared_url is not None and loaded.source is None:
        return f"in the store at {loaded.shared_url}, which is not asked here"
    if config.registry_database is not None:
        state = "there" if config.registry_database.exists() else "made at the first start"
        return f"{config.registry_database}, changed by administrators ({state})"
    if loaded.source is None:
        return "none: every API key is refused"
    snapshot = loaded.registry.snapshot
    return (
        f"{loaded.source.file}: {len(snapshot.integrations)} integrations,"
        f" {len(snapshot.credentials)} credentials"
    )
