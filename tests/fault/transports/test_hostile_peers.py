"""Hostile peers at real sidecars: memory is bounded, and no administrator is kept out."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.hostile_peers.trials import (
    RATE_PER_S,
    AttackedSidecar,
    SidecarWithAdminApi,
    SidecarWithFile,
    run_trials,
)

LOAD_S = 0.5


@pytest.mark.parametrize(
    ("sidecar_type", "kind"),
    [
        (SidecarWithFile, "half-sent"),
        (SidecarWithFile, "grpc-window-0"),
        (SidecarWithAdminApi, "half-sent"),
        (SidecarWithAdminApi, "slow-reader"),
    ],
)
def test_peers__hold_no_memory_and_keep_nobody_out(
    sidecar_type: type[AttackedSidecar], kind: str, tmp_path: Path
) -> None:
    """What decisions cost meanwhile is judged on a quiet machine, by `make hostile-peers`."""
    trials = run_trials(sidecar_type, tmp_path, [kind], rounds=1, calls=int(LOAD_S * RATE_PER_S))
    assert {trial.kind for trial in trials} == {kind}
    for trial in trials:
        assert trial.is_safe, trial
