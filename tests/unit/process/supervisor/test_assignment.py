"""The assignment of a worker arrives unchanged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.process.config import Config, load_config
from sidecar.process.supervisor.assignment import Assignment, read_assignment
from sidecar.transports.listeners import parse_endpoint

CONFIG = """\
listen:
  grpc:
    - {address: "127.0.0.1:0", tls: {cert: cert.pem, key: key.pem}}
    - unix:/run/sidecar/grpc.sock
  admin: "127.0.0.1:9193"
workers: 4
registry: registry.yaml
routes:
  - {methods: [GET, POST], path: "/v1/{x}", scope: "orders:read"}
client_ip: {header: x-forwarded-for, trusted_proxies: 10.0.0.0/8}
credentials: [{authorization: Bearer}]
drain_timeout_s: 2.5
limits: {calls_max: 77}
ietf_headers: true
"""
OWN = {"grpc": (parse_endpoint("127.0.0.1:40001"), parse_endpoint("unix:/run/sidecar/grpc.2.sock"))}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A configuration with something of every kind, and one value from the environment."""
    file = tmp_path / "sidecar.yaml"
    file.write_text(CONFIG)
    return load_config(file, {"SIDECAR_UNAUTHENTICATED_STATUS": "401"})


def test_assignment__carries_the_configuration_that_was_read(config: Config) -> None:
    """Same values, same directory, same places for messages: nothing is read from the file again."""
    Path(config.tree.file).unlink()
    reported = read_assignment(Assignment(2, config, OWN, 40, 41).write())
    assert (reported.index, reported.listen, reported.counts_fd, reported.link_fd) == (2, OWN, 40, 41)
    same_listen = {"listen": config.settings.listen}
    assert reported.config.settings.model_copy(update=same_listen) == config.settings
    assert reported.config.registry_path == config.registry_path
    assert reported.config.tree == config.tree
    assert str(reported.config.fault(("routes", 0, "path"), "x")) == str(
        config.fault(("routes", 0, "path"), "x")
    )


def test_assignment__a_worker_listens_on_its_own_addresses(config: Config) -> None:
    """Addresses are the worker's, TLS files stay with their item, and the admin listener is not its own."""
    reported = read_assignment(Assignment(2, config, OWN, 40, 41).write())
    assert tuple(item.address for item in reported.config.settings.listen.grpc) == OWN["grpc"]
    assert reported.config.tls_files("grpc", 0) == config.tls_files("grpc", 0)
    assert reported.config.tls_files("grpc", 1) is None
    assert reported.config.settings.listen.admin == ()


def test_assignment__is_given_back_after_reading(config: Config) -> None:
    """Its memory is released, and with it any secret of the configuration."""
    fd = Assignment(0, config, OWN, 40, 41).write()
    read_assignment(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
