"""A second `sidecar serve` on the same addresses: refused, or with --take-over, and then only when ready."""

from __future__ import annotations

import secrets
import signal
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.sidecar import ReservedPort
from tests.redis_servers import free_port, shared
from tests.registry_in_redis import RegistryHand, create_for
from tests.unit.process.running import Configured, Running, admin_get
from tests.waiting import eventually

EXIT_LISTEN = 2
ASKED = 20


def refused(second: Running) -> str:
    """What a sidecar says that does not start because somebody listens there already."""
    assert second.wait() == EXIT_LISTEN
    return second.printed()


@pytest.mark.parametrize(("kind", "transport"), [("tcp", "fast"), ("unix", "grpcio")])
def test_second__is_refused_on_the_embedded_store(tmp_path: Path, kind: str, transport: str) -> None:
    """Each would have separate buckets. The first goes on; one with --take-over replaces it."""
    port = ReservedPort()
    address = f"127.0.0.1:{port.number}" if kind == "tcp" else f"unix:{tmp_path}/g.sock"
    configured = Configured(tmp_path, listen={"grpc": address, "admin": []}, transport=transport)
    with configured.serve() as first:
        first.event("serving")
        reported = refused(configured.serve())
        assert f"cannot listen on {address}" in reported
        assert "--take-over" in reported
        assert configured.ask(address).is_allowed
        with configured.serve("--take-over") as second:
            second.event("serving")
            first.signal(signal.SIGTERM)
            assert first.wait() == 0
            assert configured.ask(address).is_allowed
    port.close()


@pytest.mark.parametrize(
    ("listener", "registry"), [("metrics", "registry.yaml"), ("admin", "sqlite:registry.sqlite")]
)
def test_second__is_refused_for_any_listener(tmp_path: Path, listener: str, registry: str) -> None:
    """Also where only the admin or the metrics listener is the same, under a supervisor or not."""
    listen = {"grpc": "127.0.0.1:0", "admin": [], listener: f"unix:{tmp_path}/x.sock"}
    configured = Configured(tmp_path, listen=listen, registry=registry)
    with configured.serve() as first:
        first.event("serving")
        eventually(lambda: Path(f"{tmp_path}/x.sock").exists(), what="it listens")
        assert "--take-over" in refused(configured.serve())


@pytest.mark.parametrize(("kind", "workers"), [("unix", 1), ("tcp", 2)])
def test_second__with_a_shared_store_listens_only_when_ready(tmp_path: Path, kind: str, workers: int) -> None:
    """Without its store a successor takes nothing: the first sidecar answers every call meanwhile."""
    port, metrics = ReservedPort(), ReservedPort()
    address = f"127.0.0.1:{port.number}" if kind == "tcp" else f"unix:{tmp_path}/g.sock"
    url = f"{shared().standalone.url}?prefix=sidecar:{secrets.token_hex(4)}:"
    first_folder, second_folder = tmp_path / "1", tmp_path / "2"
    listen = {"grpc": address, "admin": [], "metrics": f"127.0.0.1:{metrics.number}"}
    settings: dict[str, Any] = {
        "listen": listen,
        "workers": workers,
        "registry": None,
        "store_timeout_ms": 5_000,
    }
    for folder in (first_folder, second_folder):
        folder.mkdir()
    configured = Configured(first_folder, store=url, **settings)
    hand = RegistryHand(url)
    hand.found()
    hand.apply(create_for(configured.key))
    dead = Configured(second_folder, store=f"redis://127.0.0.1:{free_port()}", **settings)
    target = address.replace("g.sock", "g.0.sock") if workers == 2 else address
    with configured.serve() as first:
        first.event("supervising" if workers == 2 else "serving")
        eventually(lambda: configured.ask(target).is_allowed, what="the first is ready")
        with dead.serve() as second:
            second.event("store unreachable")
            assert [configured.ask(target).status for _ in range(ASKED)] == [200] * ASKED
            assert second.events("serving") == []
            second.signal(signal.SIGTERM)
            second.wait()
        assert [configured.ask(target).status for _ in range(ASKED)] == [200] * ASKED
        assert admin_get(f"127.0.0.1:{metrics.number}", "/readyz")[0] == 200
    port.close()
    metrics.close()
