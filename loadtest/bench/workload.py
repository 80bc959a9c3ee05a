"""The workload of the benchmarks: registries, configurations and Check messages as Envoy sends them."""

from __future__ import annotations

import random
import subprocess
import sys
from array import array
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import yaml
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.timestamp_pb2 import Timestamp

from sidecar.domain.api_keys import NewApiKey, generate_api_key

CHECK = "/envoy.service.auth.v3.Authorization/Check"
CLIENT_ADDRESS = "198.51.100.77"
BURST = 1_000_000


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with sidecar.yaml and registry.yaml, and the addresses of this sidecar."""

    config: Path
    grpc: str
    admin: str
    keys: tuple[NewApiKey, ...]


def write_place(
    folder: Path,
    grpc: str,
    admin: str,
    transport: str,
    integrations: int = 1,
    with_allowlist: int = 1,
    burst: int = BURST,
) -> Place:
    """
    Write a configuration with *integrations*, the first *with_allowlist* of them with 50 CIDR entries.

    The last entry contains the benchmark's client address; the default *burst* is so large that all calls are
    admitted.
    """
    keys = tuple(generate_api_key() for _ in range(integrations))
    source = random.Random(1)
    records = [
        {
            "id": f"bench-{number:05}",
            "name": f"Benchmark {number}",
            "scopes": ["orders:read", "inventory:read", "inventory:write"],
            "rate_limit_rpm": 10_000,
            "burst": burst,
            "ip_allowlist": _allowlist(source) if number < with_allowlist else [],
            "credentials": [{"id": key.credential_id, "digest": key.digest}],
        }
        for number, key in enumerate(keys)
    ]
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # thousands of records take seconds either way
    (folder / "registry.yaml").write_text(
        yaml.dump({"integrations": records}, Dumper=dumper, sort_keys=False)
    )
    settings = {
        "listen": {"grpc": [grpc], "admin": admin},
        "transport": transport,
        "client_ip": {"header": "x-client-ip"},
        "registry": "registry.yaml",
        "routes": [
            {"methods": ["GET"], "path": "/v1/orders/{id}", "scope": "orders:read"},
            {"methods": ["GET"], "path": "/v1/inventory/**", "scope": "inventory:read"},
            {"methods": ["POST", "PUT"], "path": "/v1/inventory/**", "scope": "inventory:write"},
        ],
    }
    config = folder / "sidecar.yaml"
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    return Place(config, grpc, admin, keys)


def beside(place: Place, name: str, grpc: str, admin: str, **settings: object) -> Place:
    """Write a configuration *name* next to that of *place*, with other *settings*."""
    changed = yaml.safe_load(place.config.read_text())
    changed |= {"listen": {"grpc": [grpc], "admin": admin}, **settings}
    config = place.config.with_name(name)
    config.write_text(yaml.safe_dump(changed, sort_keys=False))
    return replace(place, config=config, grpc=grpc, admin=admin)


def zipf_picks(kinds: int, size: int = 200_000, skew: float = 1.0, seed: int = 2) -> array[int]:
    """Return *size* seeded draws of 0 ... kinds - 1, number k with a weight of 1 / (k + 1) ** *skew*."""
    weights = list(accumulate((number + 1) ** -skew for number in range(kinds)))
    return array("I", random.Random(seed).choices(range(kinds), cum_weights=weights, k=size))


def check_config(place: Place) -> None:
    """Run `sidecar check-config` on the configuration."""
    command = [sys.executable, "-m", "sidecar.cli", "check-config", str(place.config)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def _allowlist(source: random.Random) -> list[str]:
    networks = {f"10.{source.randrange(256)}.{source.randrange(256)}.0/24" for _ in range(60)}
    return [*sorted(networks)[:49], "198.51.100.0/24"]


def check_request(
    api_key: str,
    path: str = "/v1/orders/42?expand=lines",
    address: str = CLIENT_ADDRESS,
    method: str = "GET",
    key_header: str = "x-api-key",
) -> bytes:
    """Return a Check as Envoy 1.40 sends it for a request with the usual headers, about 400 bytes."""
    request = CheckRequest()
    attributes = request.attributes
    attributes.source.address.socket_address.address = "10.0.0.9"
    attributes.source.address.socket_address.port_value = 51234
    attributes.destination.address.socket_address.address = "10.0.0.1"
    attributes.destination.address.socket_address.port_value = 8080
    attributes.request.time.CopyFrom(Timestamp(seconds=1_795_000_000, nanos=123_456_000))
    http = attributes.request.http
    http.id, http.method, http.path = "12345678901234567890", method, path
    http.host, http.scheme, http.protocol = "api.example.com", "https", "HTTP/1.1"
    http.headers.update(
        {
            key_header: api_key,
            "x-client-ip": address,
            "x-request-id": "3f0c1a52-58d5-4c9e-a3c5-3a4e55d6c3a7",
            "x-forwarded-for": address,
        }
    )
    attributes.metadata_context.SetInParent()
    attributes.route_metadata_context.SetInParent()
    message: bytes = request.SerializeToString()
    return message
