"""`sidecar registry`: load the registry from a file, or write it to a file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.cli.admin_command import TokenFileOption, TokenOption, ask_first
from sidecar.cli.apply import DryRunOption, PruneOption, ReasonOption
from sidecar.cli.exits import EXIT_USAGE, CommandError, report_errors
from sidecar.cli.options import ConfigOption, JsonOption
from sidecar.cli.tables import counted

if TYPE_CHECKING:
    from sidecar.domain.scopes import ScopeCatalogue
    from sidecar.stores.registry.protocol import Registry

app = typer.Typer(
    no_args_is_help=True,
    help="The registry itself, without a running sidecar: load it from a file, or write it to a file.",
)

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The shared store that holds the registry, such as redis://host; overrides the configuration's.",
    ),
]
YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Do not ask for confirmation; required without a terminal.")
]
STDOUT = "-"


@app.command()
def push(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file with 'integrations:'.")],
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    prune: PruneOption = False,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    store: StoreOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    json: JsonOption = False,
) -> None:
    """
    Change the registry to what a file declares: show the differences, ask, and apply them.

    Changes the registry that the configuration names, without the admin API; running sidecars apply the
    changes at once. Pushing the same file again changes nothing. Integrations and API keys that the file
    does not name are kept unless --prune is given. Exits with 1 if the registry refuses any of the changes.
    """
    from sidecar.cli.apply_flow import ApplyOptions, declare
    from sidecar.cli.connection import read_token
    from sidecar.cli.registry_push import Push

    with report_errors():
        secret = read_token(token, token_file)
        with _opened(config, store) as (runner, opened, catalogue):
            pushed = Push(opened, catalogue, runner, file)
            pushed.prepare(secret, reason, has_prune=prune)
            declare(pushed.plan, pushed.apply, ApplyOptions(dry_run, yes, json), ask_first)


@app.command()
def pull(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The file to write; '-' is standard output.")
    ] = STDOUT,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Replace an existing file without asking.")
    ] = False,
    config: ConfigOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """
    Write the registry to a file that 'registry push' accepts.

    The file contains digests of API keys, not the keys. It omits temporary raises, webhook secrets and the
    history of suspensions, which a push does not change. With '-' and --json the registry is printed as
    JSON, which can be pushed, too; with a FILE, --json prints what was written.
    """
    with report_errors():
        with _opened(config, store) as (runner, opened, _):
            records = runner.run(opened.load_all()).records
        import json as encoder

        from sidecar.stores.registry.file.registry_file import dump_registry
        from sidecar.stores.registry.file.registry_records import integration_to_dict

        records = tuple(sorted(records, key=lambda record: record.id))
        if file == STDOUT and json:
            content = {"integrations": [integration_to_dict(record) for record in records]}
            typer.echo(encoder.dumps(content, indent=2, ensure_ascii=False))
            return
        text = dump_registry(records)
        if file == STDOUT:
            typer.echo(text, nl=False)
            return
        _replace(Path(file), text, is_confirmed=yes)
        if json:
            typer.echo(encoder.dumps({"file": file, "integrations": len(records)}))
        else:
            typer.echo(f"{file}: {counted(len(records), 'integration')}", err=True)


@app.command()
def accept(
    was: Annotated[
        str,
        typer.Option(
            "--was",
            metavar="ID",
            help="Id of the lost registry, from the log of the sidecars. Default: the id they stored.",
        ),
    ] = "",
    yes: YesOption = False,
    config: ConfigOption = None,
    store: StoreOption = None,
) -> None:
    """
    Accept the current content of the store as the registry.

    Use it after a store was flushed, replaced, or restored from an older snapshot: sidecars answer every
    request with 503 until the data are restored or this command is run. The registry in the store gets a
    new id, which the sidecars accept. Changes that the store has lost, suspensions included, stay lost:
    repeat them right away. Change 'registry_id' in the configuration to the new id.
    """
    with report_errors(), _opened(config, store) as (runner, opened, _):
        from sidecar.stores.registry.redis.registry import RedisRegistry

        if not isinstance(opened, RedisRegistry):
            raise CommandError("the registry is not in a shared store; 'accept' works only on a shared store")
        if not yes:
            ask_first(f"Accept the current content of {opened.url}, with all data that it has lost?")
        found, id = runner.run(opened.accept(was))
        previous = f"registry {found}" if found else "no registry"
        typer.echo(f"{opened.url} held {previous}; it now holds registry {id}.")


@contextmanager
def _opened(
    config: Path | None, store: str | None
) -> Iterator[tuple[asyncio.Runner, Registry, ScopeCatalogue]]:
    """
    Yield an event loop, the registry opened on it, and the scope catalogue of the configuration.

    Raises:
        CommandError: the registry cannot be reached or used.
        FileFaultsError: the configuration holds mistakes, or has no registry that can be changed.
    """
    from sidecar.process.config import load_config
    from sidecar.process.control_plane import open_registry
    from sidecar.process.rules import build_rules
    from sidecar.stores.registry.protocol import RegistryError

    loaded = load_config(config)
    catalogue = build_rules(loaded).catalogue
    try:
        with asyncio.Runner() as runner:
            opened = _at(store, catalogue) if store is not None else runner.run(open_registry(loaded))
            try:
                yield runner, opened, catalogue
            finally:
                runner.run(opened.aclose())
    except RegistryError as error:
        raise CommandError(str(error)) from None


def _at(store: str, catalogue: ScopeCatalogue) -> Registry:
    from sidecar.domain.lifecycle.machine import Lifecycle
    from sidecar.stores.redis.urls import StoreUrlError, parse_store_url
    from sidecar.stores.registry.redis.registry import RedisRegistry

    try:
        return RedisRegistry(parse_store_url(store), Lifecycle(catalogue))
    except StoreUrlError as error:
        raise CommandError(f"--store: {error}", EXIT_USAGE) from None


def _replace(file: Path, text: str, *, is_confirmed: bool) -> None:
    """Write *file* atomically; ask before replacing a different file."""
    target = file.resolve()  # keeps a symbolic link
    part = target.with_name(f".{target.name}.new")
    try:
        before = target.read_text(encoding="utf-8", errors="replace") if target.exists() else None
        if before == text:
            return
        if before is not None and not is_confirmed:
            ask_first(f"Replace {file}? Its content differs.")
        part.write_text(text, encoding="utf-8")
        if before is not None:
            part.chmod(target.stat().st_mode & 0o777)
        part.replace(target)
    except OSError as error:
        raise CommandError(f"{file} cannot be written: {error.strerror}") from None
