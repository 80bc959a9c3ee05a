"""The configurations in deploy/envoy/ are whole, valid and alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.demo.envoy import CONFIGS, TCP_CONFIG, UNIX_CONFIG, cluster, ingress_http, load


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda config: config.name)
def test_envoy_config__envoy_takes_it_as_it_stands(config: Path) -> None:
    """`envoy --mode validate` accepts the committed file, word for word."""
    envoy = Path(sys.executable).with_name("envoy")
    result = subprocess.run(
        [envoy, "--mode", "validate", "-c", config], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr


def test_envoy_config__the_two_differ_in_the_address_alone() -> None:
    """What is said and tested of one holds for the other."""
    tcp, unix = load(TCP_CONFIG), load(UNIX_CONFIG)
    for document in (tcp, unix):
        sidecar = cluster(document, "sidecar")
        sidecar.pop("upstream_connection_options", None)
        (endpoint,) = sidecar["load_assignment"]["endpoints"][0].pop("lb_endpoints")
        assert set(endpoint["endpoint"]["address"]) == ({"pipe"} if document is unix else {"socket_address"})
    assert tcp == unix


@pytest.mark.parametrize("config", [TCP_CONFIG, UNIX_CONFIG], ids=lambda config: config.name)
def test_envoy_config__closes_the_known_holes(config: Path) -> None:
    """The settings that keep clients from lying are there; docs/integrate/envoy.md says what each is for."""
    manager = ingress_http(load(config))
    authz = next(part for part in manager["http_filters"] if part["name"].endswith("ext_authz"))[
        "typed_config"
    ]
    assert manager["normalize_path"] and manager["merge_slashes"] and manager["use_remote_address"]
    assert manager["path_with_escaped_slashes_action"] == "REJECT_REQUEST"
    assert manager["common_http_protocol_options"]["headers_with_underscores_action"] == "REJECT_REQUEST"
    assert authz["validate_mutations"] and not authz["failure_mode_allow"] and not authz["clear_route_cache"]
    assert authz["decoder_header_mutation_rules"]["disallow_all"]
