"""What is sent: keys and draws by the seed, shares of the mix, key files, and samples of processes."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest

from loadtest.driver.targets import Target, TargetError, parse_target
from loadtest.harness.scenario import KINDS, Scenario, ScenarioError
from loadtest.harness.usage import Usage
from loadtest.harness.workload import (
    SUSPENDED,
    UNKNOWN,
    VALID,
    Keys,
    make_keys,
    make_workload,
    read_keys,
    registry_records,
)
from sidecar.domain.api_keys import credential_id_of

MIX = {"valid": 0.5, "unknown": 0.2, "suspended": 0.1, "wrong_scope": 0.1, "foreign_address": 0.1}
TARGET = Target("127.0.0.1", 9_191)


def scenario(**changes: object) -> Scenario:
    """A scenario with requests of every kind."""
    traffic = {"integrations": 50, "zipf": 1.0, "unknown_keys": 20, "mix": MIX}
    return Scenario.model_validate({"traffic": traffic, **changes})


def test_workload__a_seed_makes_the_same_bytes() -> None:
    """Keys are well-formed; another seed makes others; another process draws in another order."""
    given = scenario()
    keys = make_keys(given)
    assert keys == make_keys(given) != make_keys(scenario(seed=2))
    assert len({credential_id_of(key) for key in (*keys.valid, *keys.suspended, *keys.unknown)}) == 120
    work = make_workload(given, keys, TARGET)
    assert work == make_workload(given, keys, TARGET)
    assert work.picks != make_workload(given, keys, TARGET, part=1).picks


def test_workload__draws_follow_the_mix_and_the_skew() -> None:
    """Integration number 9 is drawn a tenth as often as number 0."""
    work = make_workload(scenario(), make_keys(scenario()), TARGET)
    kinds = Counter(work.kinds[number] for number in work.picks)
    for kind, share in enumerate(MIX.values()):
        assert kinds[kind] / len(work.picks) == pytest.approx(share, rel=0.05), KINDS[kind]
    valid = Counter(work.owners[number] for number in work.picks if work.kinds[number] == VALID)
    assert valid[0] / valid[9] == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("protocol", ["ext_authz", "native", "forward_auth", "http"])
def test_workload__each_message_has_its_own_key(protocol: str) -> None:
    """By every protocol; the kinds have the keys of their owners."""
    changes = {"protocol": protocol, "sidecar": {"proxy": "nginx" if protocol == "http" else ""}}
    given = scenario(**changes)
    keys = make_keys(given)
    work = make_workload(given, keys, TARGET)
    for kind, own in ((VALID, keys.valid), (UNKNOWN, keys.unknown), (SUSPENDED, keys.suspended)):
        messages = [message for message, its in zip(work.messages, work.kinds, strict=True) if its == kind]
        assert all(key.encode() in message for key, message in zip(own, messages, strict=True))


def test_workload__unknown_keys_come_from_many_networks() -> None:
    """Every unknown key has an address of its own, the first thousands in networks of their own."""
    count = 20_000
    traffic = {"unknown_keys": count, "unknown_addresses": count, "mix": {"valid": 0.5, "unknown": 0.5}}
    given = scenario(traffic=traffic)
    work = make_workload(given, make_keys(given), TARGET)
    found = [
        CheckRequest.FromString(message).attributes.request.http.headers["x-client-ip"]
        for message, kind in zip(work.messages, work.kinds, strict=True)
        if kind == UNKNOWN
    ]
    assert len(set(found)) == count
    assert len({address.rpartition(".")[0] for address in found[:16_000]}) == 16_000


def test_workload__the_registry_has_what_the_requests_need() -> None:
    """Suspended integrations are suspended; the rate-limit service needs none."""
    records = registry_records(scenario(), make_keys(scenario()))
    assert Counter(record.get("status") for record in records) == {None: 50, "suspended": 50}
    assert {len(record["ip_allowlist"]) for record in records} == {50}
    rls = Scenario.model_validate({"protocol": "rls", "limits": {"algorithm": "fixed_window"}})
    assert registry_records(rls, make_keys(rls)) == []


def test_workload__a_file_of_keys(tmp_path: Path) -> None:
    """One key in a line, with its kind; comments and empty lines are skipped; mistakes are named."""
    file = tmp_path / "keys"
    file.write_text("# ours\nsck_a\n\nsck_b, suspended\nsck_c,unknown\n")
    assert read_keys(str(file)) == Keys(["sck_a"], ["sck_b"], ["sck_c"])
    for text, told in (("sck_a,odd", ":1: kind is 'odd'"), ("# none", "has no key")):
        file.write_text(text)
        with pytest.raises(ScenarioError, match=told):
            read_keys(str(file))
    with pytest.raises(ScenarioError, match=r"target\.keys: "):
        read_keys(str(tmp_path / "missing"))


def test_workload__a_kind_without_keys_is_refused() -> None:
    """A foreign server's keys may be of fewer kinds than the scenario mixes."""
    with pytest.raises(ScenarioError, match=r"traffic\.mix\.unknown is 0\.2, but there are no keys"):
        make_workload(scenario(), Keys(["sck_a"], ["sck_b"], []), TARGET)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("127.0.0.1:9191", Target("127.0.0.1", 9_191)),
        ("grpcs://host:1", Target("host", 1, tls=True)),
        ("https://host/auth", Target("host", 443, path="/auth", tls=True)),
        ("http://[::1]:8080/", Target("::1", 8_080)),
        ("unix:///run/grpc.sock", Target(unix="/run/grpc.sock")),
        ("unix:/run/http.sock:/auth/nginx", Target(unix="/run/http.sock", path="/auth/nginx")),
    ],
)
def test_target__every_form(text: str, target: Target) -> None:
    """As the page lists them."""
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "host", "grpc://host", "grpc://host:port", "ftp://host:1"])
def test_target__another_form_is_refused(text: str) -> None:
    """The message lists the forms."""
    with pytest.raises(TargetError, match="it must be grpc://HOST:PORT"):
        parse_target(text)


def test_usage__samples_processes_that_come_and_go() -> None:
    """A process that has ended is left out; the processor time is that since the sample before."""
    pids = [os.getpid(), 2**22 + 1]
    usage = Usage(lambda: {"own": pids})
    usage.sample(0.0)
    sum(range(3_000_000))
    usage.sample(1.0)
    first, second = usage.samples["own"]
    assert first.cpu_s == 0
    assert usage.cpu_s("own") == second.cpu_s > 0
    assert 0 <= usage.waited_share("own") < 60
    assert second.rss_bytes > 10_000_000
    assert second.fds > 2
