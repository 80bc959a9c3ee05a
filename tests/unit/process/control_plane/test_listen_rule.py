"""Where the admin listener may be without TLS."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sidecar.process.config import load_config
from sidecar.process.config_checks import is_local, refuse_open_admin
from sidecar.sources.file_faults import FileFaultsError
from sidecar.transports.listeners import parse_endpoint

TLS = {"cert": "cert.pem", "key": "key.pem"}


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "127.8.9.10:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "localhost:1", "unix:/a", "unix:@a"],
)
def test_is_local__only_this_machine(address: str) -> None:
    """Loopback in every spelling, and Unix sockets."""
    assert is_local(parse_endpoint(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:1",
        "[::]:1",
        "192.0.2.1:1",
        "10.0.0.1:1",
        "[::ffff:192.0.2.1]:1",
        "admin.example:1",
        "[fe80::1]:1",
    ],
)
def test_is_local__others_too(address: str) -> None:
    """Every interface, addresses of this machine, and names, which may lead anywhere."""
    assert not is_local(parse_endpoint(address))


def refuse(folder: Path, admin: object, **listen: object) -> None:
    """Judge a configuration with this `listen.admin`."""
    file = folder / "sidecar.yaml"
    file.write_text(yaml.safe_dump({"listen": {"admin": admin, **listen}}))
    refuse_open_admin(load_config(file, {}))


def test_rule__tls_opens_it(tmp_path: Path) -> None:
    """With TLS it may be anywhere; `listen.metrics` may be, too, and nowhere is fine."""
    refuse(tmp_path, {"address": "0.0.0.0:1", "tls": TLS})
    refuse(tmp_path, "127.0.0.1:1", metrics="0.0.0.0:2")
    refuse(tmp_path, [])


def test_rule__names_each_open_one(tmp_path: Path) -> None:
    """Each open address is reported with its place and with what to write instead."""
    with pytest.raises(FileFaultsError) as caught:
        refuse(tmp_path, ["0.0.0.0:1", {"address": "0.0.0.0:2", "tls": TLS}, "[::]:3"])
    assert [fault.field for fault in caught.value.faults] == ["listen.admin[0]", "listen.admin[2]"]
    assert all("listen.metrics" in fault.problem for fault in caught.value.faults)
