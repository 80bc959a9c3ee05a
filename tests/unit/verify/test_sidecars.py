"""Sidecars of a run, before any is started."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sidecar.verify.sidecars import Fleet, SidecarsError, child_environment


@pytest.mark.parametrize("count", [0, 65])
def test_fleet__bounds_of_its_size(tmp_path: Path, count: int) -> None:
    """A number that makes no sense is refused."""
    with pytest.raises(SidecarsError, match=r"1\.\.64"):
        Fleet(tmp_path, count, {}, {})


def test_fleet__each_sidecar_has_sockets_of_its_own(tmp_path: Path) -> None:
    """No port is shared, and none is needed."""
    fleet = Fleet(tmp_path, 3, {"registry": "registry.yaml"}, {})
    listens = [
        yaml.safe_load((tmp_path / f"sidecar-{number}.yaml").read_text())["listen"] for number in range(3)
    ]
    addresses = [address for listen in listens for address in listen.values()]
    assert [listen["grpc"] for listen in listens] == list(fleet.targets)
    assert all(address.startswith(f"unix:{tmp_path}/") for address in addresses)
    assert len(set(addresses)) == 6


def test_environment__is_that_of_no_other_sidecar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the shell's own sidecar do not reach those of the run, but its store's password does."""
    monkeypatch.setenv("SIDECAR_WORKERS", "7")
    monkeypatch.setenv("SIDECAR_REDIS_PASSWORD", "secret")
    monkeypatch.setenv("OTHER", "kept")
    store = "redis://127.0.0.1?password_env=SIDECAR_REDIS_PASSWORD"
    environment = child_environment(store)
    assert environment["SIDECAR_STORE"] == store
    assert (environment["OTHER"], environment["SIDECAR_REDIS_PASSWORD"]) == ("kept", "secret")
    assert "SIDECAR_WORKERS" not in environment
    assert "SIDECAR_REDIS_PASSWORD" not in child_environment("embedded:")
