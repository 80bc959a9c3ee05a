"""The sidecar as a systemd service: the states that it reports, and the unit that deploy/ offers."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deploy.demo.programs import Program

TIMEOUT_S = 60
DEPLOY = Path(__file__).parents[2] / "deploy" / "systemd"


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which systemd receives a service's states."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(TIMEOUT_S)
        receiver.bind(str(tmp_path / "notify"))
        yield receiver


@pytest.mark.parametrize("has_admin_api", [False, True], ids=["one process", "supervisor"])
def test_service__reports_start_reload_and_stop(
    tmp_path: Path, systemd: socket.socket, has_admin_api: bool
) -> None:
    """READY once it serves, RELOADING with the time and READY again, then STOPPING and exit code 0."""
    config = tmp_path / "sidecar.yaml"
    registry = {"registry": f"sqlite:{tmp_path}/registry.db"} if has_admin_api else {}
    listen = {"grpc": f"unix:{tmp_path}/grpc.sock", "admin": f"unix:{tmp_path}/admin.sock"}
    config.write_text(yaml.safe_dump({"listen": listen, **registry}))
    command = [sys.executable, "-m", "sidecar.cli", "serve", "--config", str(config)]
    with Program("sidecar", command, tmp_path, {"NOTIFY_SOCKET": str(tmp_path / "notify")}) as sidecar:
        assert systemd.recv(200) == b"READY=1"
        sidecar.signal(signal.SIGHUP)
        assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", systemd.recv(200))
        assert systemd.recv(200) == b"READY=1"
        sidecar.signal(signal.SIGTERM)
        assert systemd.recv(200) == b"STOPPING=1"
        assert sidecar.wait(TIMEOUT_S) == 0


def test_unit__is_accepted_by_systemd(tmp_path: Path) -> None:
    """`systemd-analyze verify` accepts the unit, with a program that exists."""
    text = (DEPLOY / "sidecar.service").read_text()
    unit = tmp_path / "sidecar.service"
    unit.write_text(re.sub(r"/opt/sidecar/bin/sidecar", "/bin/true", text))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_unit__exposes_little(tmp_path: Path) -> None:
    """systemd rates the exposure of the unit at most 2.0 of 10."""
    security = [
        "systemd-analyze",
        "security",
        "--offline=yes",
        "--threshold=20",
        str(DEPLOY / "sidecar.service"),
    ]
    rated = subprocess.run(security, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert rated.returncode == 0, rated.stdout[-300:]
