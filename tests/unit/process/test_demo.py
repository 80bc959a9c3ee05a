"""The demo: written once, complete, and right."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sidecar.domain.api_keys import credential_id_of
from sidecar.process.checking import check
from sidecar.process.demo import CALLER, KEYS_FILE, REGISTRY_FILE, prepare_demo


def test_demo__is_a_configuration_without_a_mistake(tmp_path: Path) -> None:
    """Config, registry and keys belong together, and nothing in it is odd."""
    demo = prepare_demo(tmp_path / "new" / "demo")
    loaded = check(demo.config).loaded
    assert (loaded.rules.warnings, loaded.registry.warnings) == ((), ())
    snapshot = loaded.registry.snapshot
    owners = {
        id: snapshot.credentials[credential_id_of(key)].integration.id for id, key in demo.api_keys.items()
    }
    assert owners == {id: id for id in snapshot.integrations}
    assert CALLER in owners


def test_demo__is_written_once(tmp_path: Path) -> None:
    """What is there stays, so changes and keys survive the next start."""
    first = prepare_demo(tmp_path)
    first.config.write_text("transport: grpcio\n")
    registry = (tmp_path / REGISTRY_FILE).read_text()
    second = prepare_demo(tmp_path)
    assert second == first
    assert first.config.read_text() == "transport: grpcio\n"
    assert (tmp_path / REGISTRY_FILE).read_text() == registry


@pytest.mark.parametrize("missing", [KEYS_FILE, REGISTRY_FILE])
def test_demo__keys_and_registry_are_written_together(tmp_path: Path, missing: str) -> None:
    """One without the other would be a demo whose key does not work."""
    first = prepare_demo(tmp_path)
    (tmp_path / missing).unlink()
    second = prepare_demo(tmp_path)
    assert second.api_keys != first.api_keys
    credentials = check(second.config).loaded.registry.snapshot.credentials
    assert {credential_id_of(key) for key in second.api_keys.values()} == set(credentials)


def test_demo__keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    """The only file with secrets is closed to others, and the registry has digests only."""
    demo = prepare_demo(tmp_path)
    assert stat.S_IMODE((tmp_path / KEYS_FILE).stat().st_mode) == 0o600
    registry = (tmp_path / REGISTRY_FILE).read_text()
    assert not any(key in registry for key in demo.api_keys.values())
