"""`sidecar registry`: fill the registry of a fleet, or of one sidecar, from a file, and write it back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.cli.apply import DryRunOption, PruneOption, ReasonOption
from sidecar.cli.exits import EXIT_USAGE, CommandError, report_errors
from sidecar.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from sidecar.domain.scopes import ScopeCatalogue
    from sidecar.stores.registry.protocol import Registry

GROUP = "The registry itself, past any running sidecar: fill it from a file, write it to one."
app = typer.Typer(no_args_is_help=True, help=GROUP)

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The shared store that holds the registry, such as redis://host; goes before the"
        " configuration's.",
    ),
]
YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Do not ask; needed where there is no terminal.")
]
STDOUT = "-"


@app.callback()
def registry() -> None:
    """The registry itself, past any running sidecar: fill it from a file, write it to one."""


@app.command()
def push(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file with 'integrations:'.")],
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    prune: PruneOption = False,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    store: StoreOption = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="TOKEN",
            envvar="SIDECAR_ADMIN_TOKEN",
            help="Your administrator's token; '-' reads it from standard input.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", metavar="FILE", help="A file with your token as its first line; goes first."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """
    Make the registry hold what a file declares: show the difference, ask, and apply only that.

    Works on the registry that the configuration names, past any running sidecar; those that follow
    it decide by the changes at once. Pushing twice changes nothing the second time. What the file
    does not name is left alone unless --prune is given. Exits with 1 when anything was refused, or
    would be.
    """
    from sidecar.cli.apply_flow import ApplyOptions, ask_first, declare
    from sidecar.cli.connection import given_token
    from sidecar.cli.registry_push import Push

    with report_errors():
        secret = given_token(token, token_file)
        with _opened(config, store) as (runner, opened, catalogue):
            pushed = Push(opened, catalogue, runner, file)
            pushed.prepare(secret, reason, has_prune=prune)
            declare(pushed.plan, pushed.apply, ApplyOptions(dry_run, yes, json), ask_first)


@app.command()
def pull(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Where to write it; '-' is standard output.")
    ] = STDOUT,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Replace a file that differs without asking.")
    ] = False,
    config: ConfigOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """
    Write the registry as a file that can be pushed again: pushing it at once changes nothing.

    The file holds digests of API keys, no keys. It does not hold temporary raises, webhook secrets
    and the history of suspensions, which a push leaves alone. With --json the registry goes to
    standard output as JSON, which can be pushed, too; beside a FILE --json says what was written.
    """
    with report_errors():
        with _opened(config, store) as (runner, opened, _):
            records = runner.run(opened.load_all()).records
        import json as encoder

        from sidecar.stores.registry.file.registry_file import dump_registry
        from sidecar.stores.registry.file.registry_records import integration_to_dict

        records = tuple(sorted(records, key=lambda record: record.id))
        if file == STDOUT and json:
            held = {"integrations": [integration_to_dict(record) for record in records]}
            typer.echo(encoder.dumps(held, indent=2, ensure_ascii=False))
            return
        text = dump_registry(records)
        if file == STDOUT:
            typer.echo(text, nl=False)
            return
        _replace(Path(file), text, is_confirmed=yes)
        if json:
            typer.echo(encoder.dumps({"file": file, "integrations": len(records)}))
        else:
            noun = "integration" if len(records) == 1 else "integrations"
            typer.echo(f"{file}: {len(records)} {noun}", err=True)


@app.command()
def accept(
    was: Annotated[
        str,
        typer.Option(
            "--was",
            metavar="ID",
            help="The registry that the sidecars follow, as their log names it. Default: what they remember.",
        ),
    ] = "",
    yes: YesOption = False,
    config: ConfigOption = None,
    store: StoreOption = None,
) -> None:
    """
    Accept what the store holds now in place of the registry that the sidecars follow.

    For a store that was flushed, replaced, or restored from an older snapshot: sidecars answer
    requests with 503 until the lost data are back, or until this was run. The registry in the
    store gets a new id, and those that follow the former one follow it. Changes that the store
    lacks, suspensions among them, stay lost: repeat them right after. A 'registry_id' in the
    configuration must be changed to the new id.
    """
    from sidecar.cli.apply_flow import ask_first

    with report_errors(), _opened(config, store) as (runner, opened, _):
        from sidecar.stores.registry.redis.registry import RedisRegistry

        if not isinstance(opened, RedisRegistry):
            raise CommandError("the registry is not in a shared store: there is nothing to accept")
        if not yes:
            ask_first(f"Accept what {opened.url} holds now, whatever is missing there?")
        found, id = runner.run(opened.accept(was))
        held = f"registry {found}" if found else "no registry"
        typer.echo(f"{opened.url} held {held}; it is registry {id} from now on.")


@contextmanager
def _opened(
    config: Path | None, store: str | None
) -> Iterator[tuple[asyncio.Runner, Registry, ScopeCatalogue]]:
    """
    The registry, a loop to use it on, and the categories of scopes of the configuration.

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
    """Write *file* as a whole or not at all; what stands there now is not lost by mistake."""
    from sidecar.cli.apply_flow import ask_first

    place = file.resolve()  # a link stays a link
    part = place.with_name(f".{place.name}.new")
    try:
        before = place.read_text(encoding="utf-8", errors="replace") if place.exists() else None
        if before == text:
            return
        if before is not None and not is_confirmed:
            ask_first(f"Replace {file}, which differs?")
        part.write_text(text, encoding="utf-8")
        if before is not None:
            part.chmod(place.stat().st_mode & 0o777)
        part.replace(place)
    except OSError as error:
        raise CommandError(f"{file} cannot be written: {error.strerror}") from None
