"""systemd hears once that the sidecar serves."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from sidecar.process.operating_system import notify_ready


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_notify__says_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """READY=1 in one datagram, to a path or to an abstract name."""
    name = str(tmp_path / "notify") if kind == "path" else f"@{tmp_path.name}-notify"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(5)
        systemd.bind(name.replace("@", "\0", 1))
        notify_ready()
        assert systemd.recv(100) == b"READY=1"


def test_notify__nobody_waits(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Without systemd there is nothing to do."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify_ready()
    assert caplog.records == []


def test_notify__a_dead_socket_is_only_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A sidecar that serves does not end because nobody hears so."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "missing"))
    with caplog.at_level(logging.WARNING):
        notify_ready()
    assert "No such file or directory" in caplog.text
