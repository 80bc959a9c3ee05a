"""The first administrator: made once, on an empty registry, by `sidecar admin bootstrap`."""

from __future__ import annotations

import asyncio
import json
import re
import stat
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from sidecar.cli.root import app
from sidecar.domain.accounts import Administrator, authenticate
from sidecar.domain.roles import Role
from sidecar.process.config import load_config
from sidecar.process.control_plane import open_registry
from sidecar.stores.clocks import wall_clock_us
from tests.administration import DAY_US
from tests.redis_servers import shared


def configured(folder: Path, **settings: object) -> Path:
    """A configuration file with these settings."""
    path = folder / "sidecar.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def bootstrap(config: Path, *arguments: str, id: str = "ann") -> Result:
    """Run the command."""
    return CliRunner().invoke(app, ["admin", "bootstrap", "--id", id, "--config", str(config), *arguments])


def administrators(config: Path) -> tuple[Administrator, ...]:
    """Who is in the registry of *config*."""

    async def ask() -> tuple[Administrator, ...]:
        registry = await open_registry(load_config(config))
        try:
            return await registry.administrators()
        finally:
            await registry.aclose()

    return asyncio.run(ask())


def test_bootstrap__prints_a_token_that_works(tmp_path: Path) -> None:
    """The token is alone on standard output, is of an admin, and lives for ninety days."""
    config = configured(tmp_path, registry="sqlite:registry.sqlite")
    result = bootstrap(config, "--name", "Ann Lee")
    assert result.exit_code == 0
    token = result.stdout.strip()
    assert re.fullmatch(r"sca_[0-9A-Za-z]+_[0-9A-Za-z]+", token)
    assert token not in result.stderr
    [ann] = administrators(config)
    now_us = wall_clock_us()
    actor = authenticate(token, ann, now_us)
    assert (actor.id, actor.role, ann.name) == ("ann", Role.ADMIN, "Ann Lee")
    left_us = ann.tokens[0].expires_at_us - now_us
    assert 89 * DAY_US < left_us <= 90 * DAY_US


def test_bootstrap__on_an_empty_registry_only(tmp_path: Path) -> None:
    """A second one is refused, no matter who asks, says what to do, prints no token and makes no account."""
    config = configured(tmp_path, registry="sqlite:registry.sqlite")
    bootstrap(config)
    result = bootstrap(config, id="eve")
    assert result.exit_code == 1
    assert "ask an administrator" in result.stderr
    assert result.stdout == ""
    assert [administrator.id for administrator in administrators(config)] == ["ann"]


def test_bootstrap__as_json(tmp_path: Path) -> None:
    """`--json` has the account, the token, its id and its expiry."""
    config = configured(tmp_path, registry="sqlite:registry.sqlite")
    reported = json.loads(bootstrap(config, "--json", "--expires", "1d").stdout)
    assert reported["administrator"] == {"id": "ann", "name": "ann", "role": "admin"}
    [ann] = administrators(config)
    assert reported["token_id"] == ann.tokens[0].id
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", reported["expires_at"])
    assert authenticate(reported["token"], ann, wall_clock_us()).id == "ann"


def test_bootstrap__in_a_shared_store(tmp_path: Path) -> None:
    """With a shared store the account is there."""
    url = f"{shared().standalone.url}?prefix=bootstrap:{tmp_path.name}:"
    config = configured(tmp_path, store=url)
    assert bootstrap(config).exit_code == 0
    assert [administrator.id for administrator in administrators(config)] == ["ann"]
    assert bootstrap(config, id="eve").exit_code == 1


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({}, "registry: is not set"),
        ({"registry": "registry.yaml"}, "which is changed by editing it"),
        ({"registry": "sqlite:a.sqlite", "store": "redis://127.0.0.1:1"}, "remove 'registry'"),
        ({"registry": "sqlite:"}, "must name a file"),
        ({"registry": "sqlite:///a.sqlite"}, "must not be a URL"),
        ({"registry": "sqlite:no/such/folder/a.sqlite"}, "cannot be opened"),
    ],
)
def test_bootstrap__without_a_registry_to_change(
    tmp_path: Path, settings: dict[str, object], hint: str
) -> None:
    """It ends with a sentence that says what to set, and with 1."""
    result = bootstrap(configured(tmp_path, **settings))
    assert result.exit_code == 1, result.output
    assert hint in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [("--expires", "0"), ("--expires", "367d"), ("--expires", "90")])
def test_bootstrap__wrong_usage(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """What cannot be a token's life is wrong usage, and makes nothing."""
    config = configured(tmp_path, registry="sqlite:registry.sqlite")
    assert bootstrap(config, *arguments).exit_code == 2
    assert not (tmp_path / "registry.sqlite").exists()


def test_bootstrap__ids_that_cannot_be(tmp_path: Path) -> None:
    """An id that an account cannot have is refused with the rule."""
    result = bootstrap(configured(tmp_path, registry="sqlite:registry.sqlite"), id="Ann Lee")
    assert result.exit_code == 1
    assert "must be 1-64 of" in result.stderr


def test_registry__is_private(tmp_path: Path) -> None:
    """The file that is made can be read by its owner alone, and lies beside the configuration."""
    bootstrap(configured(tmp_path, registry="sqlite:registry.sqlite"))
    assert stat.S_IMODE((tmp_path / "registry.sqlite").stat().st_mode) == 0o600
