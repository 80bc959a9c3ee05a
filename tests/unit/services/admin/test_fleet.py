"""The admin API over the registry of a fleet: real Redis, several partitions, one chain in each."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator

import pytest

from sidecar.domain.audit import StoredEntry, verify
from sidecar.domain.changes import Revision
from sidecar.stores.registry.redis.registry import RedisRegistry
from tests.administration import LIFECYCLE
from tests.building import ManualClock
from tests.store_harness import url_of
from tests.unit.services.admin.admin_api import AdminApi, People, add_people

PARTITIONS = 4
NAMES = [f"int-{number}" for number in range(12)]


@pytest.fixture
def fleet(people: People) -> Iterator[AdminApi]:
    """A control plane in a Redis that tests share, under a separate prefix, with twelve integrations."""
    url = url_of("standalone", f"sidecar:{secrets.token_hex(4)}:", partitions=str(PARTITIONS))
    with asyncio.Runner() as runner:
        clock = ManualClock()
        registry = RedisRegistry(url, LIFECYCLE, clock_us=clock)
        try:
            runner.run(add_people(registry, people.keys))
            api = AdminApi(runner, registry, clock, people.keys)
            members = [
                {"action": "integration.create", "integration_id": name, "name": name} for name in NAMES
            ]
            results = api.change("/v1/changes", {"changes": members})["results"]
            assert {result["status"] for result in results} == {201}
            yield api
        finally:
            runner.run(registry.aclose())


def test_fleet__many_changes_wait_for_the_last_of_each_partition(fleet: AdminApi) -> None:
    """Each partition has its own history."""
    partitions = [position.partition for position in fleet.put_in_force.positions]
    assert len(partitions) == len(set(partitions)) > 1


def test_fleet__a_list_is_one_order_over_all_partitions(fleet: AdminApi) -> None:
    """Page by page, each integration once."""
    seen: list[str] = []
    after = ""
    while True:
        page = fleet.get(f"/v1/integrations?limit=5&after={after}")
        seen += [item["id"] for item in page["items"]]
        after = page["next_after"]
        if after is None:
            break
    assert seen == sorted(NAMES)
    assert [item["id"] for item in fleet.get("/v1/review?limit=100")["items"]] == sorted(NAMES)


def test_fleet__chains_are_read_together_unless_one_is_named(fleet: AdminApi) -> None:
    """Page by page, the newest first or last; a subject has all its entries in one chain."""
    seen, path = [], "/v1/audit?newest_first=true&limit=5"
    after = ""
    while after is not None:
        page = fleet.get(f"{path}&after={after}" if after else path)
        assert (page["chain"], page["chains"]) == (None, list(range(PARTITIONS)))
        seen += [(item["at"], item["chain"], item["sequence"]) for item in page["items"]]
        after = page["next_after"]
    assert len(seen) == len(NAMES) + 4
    assert seen == sorted(seen, reverse=True)
    assert {chain for _, chain, _ in seen} == set(range(PARTITIONS))
    fleet.refused(422, "invalid_value", fleet.call("GET", "/v1/audit?after=7"))
    page = fleet.get("/v1/audit?integration=int-3")
    assert [item["action"] for item in page["items"]] == ["integration.create"]
    (chain,) = page["chains"]
    assert fleet.get(f"/v1/audit?chain={chain}")["items"]
    wrong = fleet.call("GET", f"/v1/audit?integration=int-3&chain={chain + 1}")
    fleet.refused(422, "invalid_value", wrong)


def test_fleet__export_and_verification_cover_every_chain(fleet: AdminApi) -> None:
    """What is exported, in the order of times, verifies offline to the one anchor that the API shows."""
    lines = [json.loads(line) for line in fleet.call("GET", "/v1/audit/export").text.splitlines()]
    assert len(lines) == len(NAMES) + 4
    report = fleet.get("/v1/audit/verify")
    assert report["is_intact"] and report["entries"] == len(lines)
    times = [json.loads(line["text"])["at_us"] for line in lines]
    assert times == sorted(times)
    for summary in report["chains"]:
        chain = summary["chain"]
        entries = [
            StoredEntry(chain, line["sequence"], line["digest"], line["text"])
            for line in lines
            if line["chain"] == chain
        ]
        offline = verify(entries, chain)
        assert offline.is_intact
        assert summary["anchor"] == f"{chain}:{offline.head.sequence}:{offline.head.digest}"
    anchors = [report["anchor"], *(chain["anchor"] for chain in report["chains"])]
    assert fleet.get("/v1/audit/verify?" + "&".join(f"anchor={anchor}" for anchor in anchors))["is_intact"]
    wrong = report["anchor"][:-1] + ("0" if report["anchor"][-1] != "0" else "1")
    (finding,) = fleet.get(f"/v1/audit/verify?anchor={wrong}")["findings"]
    assert finding["kind"] == "altered" and wrong in finding["problem"]


def test_fleet__repeats_and_guards_work_as_in_a_file(fleet: AdminApi) -> None:
    """The rules are the registry's, whichever it is."""
    path = "/v1/integrations/int-1/credentials/issue"
    headers = {"Idempotency-Key": "k"}
    first = fleet.change(path, {}, headers=headers)
    again = fleet.call("POST", path, {}, headers=headers)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert (again.json()["api_key"], again.json()["credential_id"]) == (None, first["credential_id"])
    late = fleet.call("POST", path, {}, headers={"If-Match": '"1"'})
    fleet.refused(412, "generation_conflict", late)
    assert fleet.change(path + "?dry_run=true", {})["position"] is None
    assert fleet.get("/v1/integrations/int-1")["generation"] == 2


def test_fleet__a_suspension_waits_for_the_partition_it_is_in(fleet: AdminApi) -> None:
    """Who has followed elsewhere only has not confirmed."""
    revision = fleet.run(fleet.registry.revision())
    ahead = Revision(tuple(sequence + 1 for sequence in revision.sequences))
    fleet.run(fleet.registry.announce("ahead", ahead))
    view = fleet.change("/v1/integrations/int-5/suspend?wait=60s", {"reason": "x"})
    assert (view["confirmation"]["is_complete"], view["confirmation"]["sidecars"]) == (True, 1)
    partition = int(view["position"].split(".")[0])
    behind = tuple(n - (place == partition) for place, n in enumerate(ahead.sequences))
    fleet.run(fleet.registry.announce("ahead", Revision(behind)))
    (sidecar,) = fleet.get("/v1/sidecars")["items"]
    assert sidecar["is_up_to_date"] is False
