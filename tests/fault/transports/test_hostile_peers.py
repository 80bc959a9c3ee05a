"""Hostile peers at real sidecars: memory is bounded, and no administrator is kept out."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.hostile_peers.trials import AttackedSidecar, SidecarWithAdminApi, SidecarWithFile, run_trials


@pytest.mark.parametrize(
    ("sidecar_type", "kinds"),
    [
        (SidecarWithFile, {"half-sent", "grpc-window-0"}),
        (SidecarWithAdminApi, {"half-sent", "slow-reader"}),
    ],
)
def test_peers__hold_no_memory_and_keep_nobody_out(
    sidecar_type: type[AttackedSidecar], kinds: set[str], tmp_path: Path
) -> None:
    """What decisions cost meanwhile is judged on a quiet machine, by `make hostile-peers`."""
    trials = run_trials(sidecar_type, tmp_path, sorted(kinds), rounds=1, calls=0)
    assert {trial.kind for trial in trials} == kinds
    for trial in trials:
        assert trial.is_safe, trial
