"""Administrators' commands against `sidecar serve`: by TLS, by Unix socket, and wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

from tests.certificates import AuthorityFolder
from tests.unit.cli.test_cli import run
from tests.unit.process.running import Running


class Site:
    """One sidecar whose admin listeners are plain, encrypted, and a Unix socket; ann administers it."""

    def __init__(self, folder: Path) -> None:
        """Start it, and make ann."""
        self.folder = folder
        authority = AuthorityFolder(folder)
        certificate, key = authority.sign("sidecar")
        self.ca = authority.ca
        self.socket = f"unix:{folder}/admin.sock"
        encrypted = {"address": "127.0.0.1:0", "tls": {"cert": str(certificate), "key": str(key)}}
        listen = {"grpc": "127.0.0.1:0", "admin": ["127.0.0.1:0", encrypted, self.socket]}
        config = folder / "sidecar.yaml"
        config.write_text(yaml.safe_dump({"listen": listen, "registry": "sqlite:registry.sqlite"}))
        self._sidecar = Running(folder, "--config", str(config))
        plain, encrypted_at, _ = self._sidecar.event("supervising")["admin"]
        self.plain = f"http://{plain}"
        self.encrypted = f"https://localhost:{encrypted_at.rpartition(':')[2]}"
        self.token = run("admin", "bootstrap", "--id", "ann", "--config", str(config)).stdout.strip()

    def whoami(self, *arguments: str) -> Result:
        """Ask who ann is."""
        return run("admin", "whoami", *arguments, env={"SIDECAR_ADMIN_TOKEN": self.token})

    def close(self) -> None:
        """Stop it."""
        self._sidecar.stop()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """One for all tests of this file; its path is short enough for a Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="sidecar-e2e-"))
    running = Site(folder)
    yield running
    running.close()
    shutil.rmtree(folder)


def test_admin_commands__reach_every_kind_of_listener(site: Site) -> None:
    """Plain on this machine, TLS under a CA of one's own, and a Unix socket."""
    for arguments in (
        ("--server", site.plain),
        ("--server", site.encrypted, "--ca", str(site.ca)),
        ("--server", site.socket),
    ):
        reported = site.whoami(*arguments)
        assert (reported.exit_code, reported.stderr) == (0, "")
        assert reported.stdout.startswith("administrator\tann\n")


def test_admin_commands__what_cannot_be_trusted_gets_no_token(site: Site) -> None:
    """A certificate of another CA ends the call, and says which option names the right one."""
    reported = site.whoami("--server", site.encrypted)
    assert reported.exit_code == 1
    assert "its certificate is not trusted: pass the CA that signed it with --ca FILE" in reported.stderr
    elsewhere = site.encrypted.replace("localhost", "127.0.0.1")  # not a name in the certificate
    reported = site.whoami("--server", elsewhere, "--ca", str(site.ca))
    assert (reported.exit_code, "its certificate is for other names" in reported.stderr) == (1, True)


def test_admin_commands__the_wrong_scheme_is_reported(site: Site) -> None:
    """https where there is no TLS, and http where there is, are slips that have a remedy."""
    reported = site.whoami("--server", site.plain.replace("http:", "https:"), "--ca", str(site.ca))
    assert (reported.exit_code, "write http:// instead of https://" in reported.stderr) == (1, True)
    plain = site.whoami("--server", site.encrypted.replace("https:", "http:"))
    assert (plain.exit_code, "if the listener uses TLS, write https://" in plain.stderr) == (1, True)


def test_admin_commands__output_that_cannot_be_written_is_reported(site: Site) -> None:
    """A full disk or a closed output ends a command in a sentence; a key that was lost is named."""
    environment = {"SIDECAR_SERVER": site.plain, "SIDECAR_ADMIN_TOKEN": site.token}
    program = f"{sys.executable} -m sidecar.cli"
    script = (
        f"{program} integrations create full > /dev/full\n"
        f"{program} credentials issue full > /dev/full\n"
        f"{program} integrations list >&-\n"
    )
    reported = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=110,
    ).stderr  # fmt: skip
    assert "sidecar: the output cannot be written: No space left on device" in reported
    assert "The API key of full was created, but standard output cannot be written" in reported
    assert "sidecar: standard output is closed" in reported
    assert "Traceback" not in reported


def test_admin_commands__a_sidecar_without_a_control_plane_is_reported(tmp_path: Path, site: Site) -> None:
    """A registry that is a file is edited, not administered: the answer says what to configure."""
    (tmp_path / "registry.yaml").write_text("integrations: []\n")
    config = tmp_path / "sidecar.yaml"
    listen = {"grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"}
    config.write_text(yaml.safe_dump({"listen": listen, "registry": "registry.yaml"}))
    with Running(tmp_path, "--config", str(config)) as plain:
        reported = site.whoami("--server", plain.event("serving")["admin"][0])
    assert reported.exit_code == 1
    assert "registry: sqlite:" in reported.stderr
