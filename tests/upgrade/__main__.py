"""
Proves upgrade and rollback under load: `make upgrade-proof`, or COMMIT=… for another former build.

The former build serves and makes integrations; this build takes over its address, its registry and its
buckets, changes the registry, and the former build takes over again. No request may fail, no token is handed
out twice, and each build obeys and verifies what the other wrote.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.redis_servers import RedisServer
from tests.upgrade.builds import FORMER, install
from tests.upgrade.fleet import InstalledSidecar, SteadyCalls, UpgradePlace

BURST = 5
STORE_TIMEOUT_MS = 1_000
"""The default of 50 ms fails calls where other programs keep the processors busy."""


def prove(parts: ExitStack, name: str, folder: Path, former: Path, current: Path, **settings: Any) -> None:
    """Upgrade and roll back one sidecar with these settings; *parts* ends what still runs after a failure."""
    place = UpgradePlace(folder / name, **settings)
    place.bootstrap(former)
    old = parts.enter_context(InstalledSidecar(former, place, "former", takes_over=False))
    place.create(former, "busy", 10_000, 1_000_000)
    place.create(former, "limited", 1, BURST)
    place.create(former, "leaked", 60, BURST)
    place.run(former, "suspend", "leaked", "--reason", "before the upgrade", "--yes")
    assert place.reasons("limited", BURST + 1) == ["ok"] * BURST + ["rate_limited"]
    with SteadyCalls(place, "busy") as load:
        load.go_on()
        new = parts.enter_context(InstalledSidecar(current, place, "current", takes_over=True))
        load.go_on()
        assert old.stop() == 0
        load.go_on()
        check(place, current, is_bucket_shared="store" in settings)
        place.create(current, "late", 60, BURST)
        place.run(current, "suspend", "limited", "--reason", "after the upgrade", "--yes")
        print(f"{name}: upgraded, {load.calls} calls, {len(load.faults)} failed")
        old = parts.enter_context(InstalledSidecar(former, place, "rollback", takes_over=True))
        load.go_on()
        assert new.stop() == 0
        load.go_on()
        assert place.reasons("limited") == place.reasons("leaked") == ["integration_suspended"]
        assert place.reasons("late") == ["ok"]
        place.run(former, "audit", "verify")
        print(f"{name}: rolled back, {load.calls} calls, {len(load.faults)} failed")
    assert not load.faults, load.faults
    assert old.stop() == 0


def check(place: UpgradePlace, current: Path, is_bucket_shared: bool) -> None:
    """What the former build stored is in force: suspension, audit log, and the bucket of a shared store."""
    assert place.reasons("leaked") == ["integration_suspended"]
    assert place.reasons("limited") == (["rate_limited"] if is_bucket_shared else ["ok"])
    place.run(current, "audit", "verify")


def main() -> None:
    """Build both and prove each kind of store."""
    commit = sys.argv[1] if len(sys.argv) > 1 else FORMER
    with tempfile.TemporaryDirectory(prefix="sidecar-upgrade-") as name, ExitStack() as parts:
        folder = Path(name)
        former, current = install(commit, folder / "former"), install("HEAD", folder / "current")
        print(f"from {commit} to HEAD and back")
        prove(
            parts,
            "SQLite registry, buckets in memory",
            folder,
            former,
            current,
            registry="sqlite:registry.sqlite",
        )
        redis = RedisServer(folder / "redis").start()
        try:
            prove(
                parts,
                "registry and buckets in Redis",
                folder,
                former,
                current,
                store=redis.url,
                store_timeout_ms=STORE_TIMEOUT_MS,
            )
        finally:
            redis.stop()


if __name__ == "__main__":
    main()
