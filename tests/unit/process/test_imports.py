"""A serving process keeps only the modules in memory that its configuration uses."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.process.running import Configured

UNUSED = (
    "cryptography", "duckdb", "grpc", "hiredis", "httpx", "jinja2", "multiprocessing", "opentelemetry",
    "redis", "rich", "sqlite3", "starlette",
    "sidecar.cli.root", "sidecar.process.control_plane", "sidecar.process.supervisor",
    "sidecar.services.admin", "sidecar.services.rls", "sidecar.stores.decisions",
    "sidecar.stores.redis.bucket_store", "sidecar.stores.registry.live", "sidecar.stores.registry.sqlite",
)  # fmt: skip
"""Modules and packages that one process with the embedded store and a registry file does not need."""

IMPORTED = re.compile(r"^import time: .*\| +(\S+)$", re.MULTILINE)


def test_serve__imports_only_what_its_configuration_uses(tmp_path: Path) -> None:
    """`sidecar serve` with the embedded store and a registry file imports none of `UNUSED`."""
    with Configured(tmp_path).serve(PYTHONPROFILEIMPORTTIME="1") as sidecar:
        sidecar.event("serving")
        imported = set(IMPORTED.findall(sidecar.printed()))
    assert "sidecar.transports.fast.connection" in imported
    assert [name for name in UNUSED if any(f"{module}.".startswith(f"{name}.") for module in imported)] == []
