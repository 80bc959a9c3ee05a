"""The demo: a configuration and a registry with new API keys, written once into a directory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import yaml

from sidecar.domain.api_keys import NewApiKey, generate_api_key

CONFIG_FILE = "sidecar.yaml"
REGISTRY_FILE = "registry.yaml"
KEYS_FILE = "api-keys.json"
CALLER = "acme-erp"
"""The integration whose key the start message shows."""

_CONFIG = """\
# The demo configuration. docs/reference/configuration.md describes every key; an empty file works, too.
listen:
  grpc: 127.0.0.1:9191
  http: 127.0.0.1:9192
  admin: 127.0.0.1:9193
registry: registry.yaml
decision_log: decisions # a row for each decision, in Parquet files
client_ip: peer
routes:
  - {methods: GET,  path: /v1/inventory/**,    scope: inventory:read}
  - {methods: GET,  path: "/v1/orders/{order}", scope: orders:read}
  - {methods: POST, path: /v1/orders,          scope: orders:write}
  - {methods: GET,  path: /v1/ping,            scope: none}
"""


class Demo(NamedTuple):
    """The configuration file of the demo, and the API key of each integration."""

    config: Path
    api_keys: dict[str, str]


def prepare_demo(directory: Path) -> Demo:
    """
    Write the missing files of the demo into *directory*; existing files stay.

    Raises:
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / CONFIG_FILE
    if not config.exists():
        config.write_text(_CONFIG)
    keys_file, registry = directory / KEYS_FILE, directory / REGISTRY_FILE
    if not (keys_file.exists() and registry.exists()):
        keys = {id: generate_api_key() for id in ("acme-erp", "depot-scanner", "legacy-import")}
        registry.write_text(_registry(keys))
        _write_secret(keys_file, json.dumps({id: key.api_key for id, key in keys.items()}, indent=2) + "\n")
    return Demo(config, json.loads(keys_file.read_text()))


def _registry(keys: dict[str, NewApiKey]) -> str:
    def integration(id: str, name: str, **fields: object) -> dict[str, object]:
        credential = {"id": keys[id].credential_id, "digest": keys[id].digest}
        return {"id": id, "name": name, **fields, "credentials": [credential]}

    integrations = [
        integration(
            "acme-erp",
            "Acme ERP",
            scopes=["inventory:read", "orders:read", "orders:write"],
            rate_limit_rpm=60,
            burst=5,
        ),
        integration(
            "depot-scanner", "Depot scanner", scopes=["inventory:read"], ip_allowlist=["192.0.2.0/24"]
        ),
        integration("legacy-import", "Legacy import", status="suspended", scopes=["orders:write"]),
    ]
    head = "# The demo registry; change it while the sidecar runs. The API keys are in api-keys.json.\n"
    return head + yaml.safe_dump({"integrations": integrations}, sort_keys=False)


def _write_secret(path: Path, text: str) -> None:
    """Write a file that never has other permissions than 0600."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        os.fchmod(descriptor, 0o600)
        stream.write(text)
