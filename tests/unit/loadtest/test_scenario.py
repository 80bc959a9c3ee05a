"""Scenario files: the built-in ones are valid, and every mistake is named with its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.harness.scenario import FOLDER, ScenarioError, load_scenario

BUILT_IN = sorted(file.stem for file in FOLDER.glob("*.toml"))


def test_scenario__the_built_in_ones_are_there() -> None:
    """The page lists these."""
    assert set(BUILT_IN) >= {
        *("attack", "hot-key", "many-tenants", "nginx", "over-limit"),
        *("redis-outage", "rls", "rolling-restart", "steady", "suspend-under-load"),
    }


@pytest.mark.parametrize("name", BUILT_IN)
def test_scenario__each_built_in_one_is_valid_and_described(name: str) -> None:
    """A name finds its file."""
    scenario = load_scenario(name)
    assert (scenario.name, bool(scenario.description)) == (name, True)


def test_scenario__changes_override_the_file() -> None:
    """A value is TOML; plain text needs no quotes; a missing section is added."""
    changes = ["load.rate_per_s=50", "load.shape=soak", "target.address=127.0.0.1:9191", 'target.keys="k"']
    scenario = load_scenario("steady", changes)
    assert (scenario.load.rate_per_s, scenario.load.shape) == (50, "soak")
    assert scenario.target is not None and scenario.target.keys == "k"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("load.rate_per_s=-1", "load.rate_per_s: "),
        ("load.rate=5", "load.rate: "),
        ("load.shape=ramp", "needs load.peak_per_s"),
        ("description.a=1", "description is not a section"),
        ("seed", "must be KEY=VALUE"),
        ("lod.shape=ramp", "lod: unknown key; did you mean 'load'?"),
        ("traffic.mix.valit=1", "traffic.mix.valit: unknown key; did you mean 'valid'?"),
        ("events=[{at_s=1, time=1}]", "events.0.time: unknown key; did you mean 'times'?"),
        ("protocol=grpc", "protocol: is 'grpc'; it must be 'ext_authz', "),
        ("load.rate_per_s=-1", "load.rate_per_s: is -1; it must be greater than 0"),
        ("traffic.mix={valid=0.5}", "must add up to 1"),
        ("connections.connections=2000", "raise connections.processes"),
        ("connections.processes=20", "every process needs one"),
        ("protocol=rls", "traffic.mix.valid must be 1"),
        ("protocol=http", "sidecar.proxy"),
        ("limits.algorithm=fixed_window", "only for protocol 'rls'"),
        ("traffic.allowlist_entries=0", "needs traffic.allowlist_entries"),
        ("sidecar.count=2", "sidecar.store must not be 'embedded'"),
        ('events=[{at_s=1, do="pause-redis"}]', "needs sidecar.store = 'redis'"),
        ('events=[{at_s=1, do="fail-over"}]', "needs sidecar.store = 'sentinel'"),
        ("traffic.focus_share=0.5", "needs an event suspend"),
        ('events=[{at_s=1, do="suspend"}]', "needs sidecar.registry = 'api'"),
        ("target.address=tcp://a:1", "it must be grpc://HOST:PORT"),
        ("target.address=grpc://127.0.0.1:9191", "target.keys must be a file"),
    ],
)
def test_scenario__a_mistake_is_named(change: str, told: str) -> None:
    """The message has the key and what is allowed."""
    with pytest.raises(ScenarioError) as caught:
        load_scenario("steady", [change])
    assert told in str(caught.value)


def test_scenario__a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    """An unknown name lists the known ones; a broken file is told with its path."""
    with pytest.raises(ScenarioError, match="built in are attack, "):
        load_scenario("nothing")
    with pytest.raises(ScenarioError, match="did you mean 'steady'"):
        load_scenario("stedy")
    with pytest.raises(ScenarioError, match="no such file"):
        load_scenario(str(tmp_path / "nothing.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("a = ")
    with pytest.raises(ScenarioError, match=r"broken\.toml: "):
        load_scenario(str(broken))
