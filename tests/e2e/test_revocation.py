"""A suspension is instant: short trials on real sidecars, and the proof finds one that is not."""

from __future__ import annotations

import secrets

import pytest

from loadtest.revocation.administrator import Administrator
from loadtest.revocation.trials import RevocationError, prove_revocation
from tests.redis_servers import shared
from tests.store_harness import run

PATIENCE_S = 120.0
TRIALS, SIDECARS = 10, 2


def test_revocation__nobody_is_let_in_after_the_commit() -> None:
    """No sidecar under load admits a request that was sent after the commit returned; no key is left."""
    prefix = f"sidecar:{secrets.token_hex(4)}:"
    store = shared().cluster
    report = run(prove_revocation(f"{store.url}?prefix={prefix}", TRIALS, SIDECARS), PATIENCE_S)
    reported = report.as_json()
    assert (reported["verdict"], reported["trials"], reported["admitted_after_commit"]) == ("kept", TRIALS, 0)
    assert reported["sent_after_commit"] >= TRIALS * SIDECARS * 20
    assert reported["admitted_before_commit"] >= TRIALS * SIDECARS * 50
    assert [key for server in store.servers for key in server.client.keys(f"{prefix}*")] == []


class IdleAdministrator(Administrator):
    """Says that a suspension is committed, and has done nothing."""

    async def suspend(self, number: int) -> None:
        """Do nothing."""


def test_revocation__one_that_does_not_work_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that go on being admitted are counted, and the verdict is broken."""
    monkeypatch.setattr("loadtest.revocation.trials.DENY_TIMEOUT_S", 0.3)
    report = run(prove_revocation(shared().standalone.url, 1, 1, make=IdleAdministrator), PATIENCE_S)
    reported = report.as_json()
    assert reported["verdict"] == "broken"
    assert reported["admitted_after_commit"] > 0


@pytest.mark.parametrize("trials", [0, 100_001])
def test_revocation__bounds_of_the_trials(trials: int) -> None:
    """A number that makes no sense is refused before anything is started."""
    with pytest.raises(RevocationError, match="1 to 100000"):
        run(prove_revocation("redis://127.0.0.1:1", trials, 1))
