"""Plans and their application, on real registries and through the real admin API."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sidecar.app.declaring import api_target as module
from sidecar.app.declaring import engine
from sidecar.app.declaring.api_target import ApiTarget
from sidecar.app.declaring.document import plan_document, report_document
from sidecar.app.declaring.engine import Report, Wish, apply_plan, make_plan
from sidecar.app.declaring.target import STEPS_MAX, ChangeTarget, TargetError
from sidecar.domain.declared import Kind, Plan, Step
from sidecar.domain.integrations import Status
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.scopes import ScopeCatalogue
from sidecar.services.admin import call
from sidecar.stores.registry.protocol import REQUESTS_MAX
from sidecar.stores.registry_file import dump_registry, parse_declarations
from tests.administration import digest

from .worlds import Meddled, api_target, redis_target, sqlite_target

CATALOGUE = ScopeCatalogue()
World = Callable[[Path], AbstractContextManager[ChangeTarget]]
WORLDS = pytest.mark.parametrize("world", [sqlite_target, redis_target, api_target])

FIRST = f"""
integrations:
  - id: acme-erp
    name: Acme ERP
    contact: ops@acme.example
    scopes: [orders:read, orders:write]
    rate_limit_rpm: 600
    burst: 100
    on_store_error: local
    ip_allowlist: [192.0.2.0/24, "2001:db8::/32"]
    is_allowlist_enabled: false
    credentials:
      - {{id: k1, digest: "{digest("k1")}", expires_at: 2094-01-31T00:00:00.5+01:00}}
      - {{id: k2, digest: "{digest("k2")}"}}
  - id: depot
    name: Depot
    status: suspended
    third_party_manager: Agency
    credentials:
      - {{id: k3, digest: "{digest("k3")}"}}
  - {{id: least, name: Least}}
"""
SECOND = f"""
integrations:
  - id: acme-erp
    name: Acme
    contact: ""
    owner: Ops
    scopes: [orders:read, crm:read]
    rate_limit_rpm: 60
    ip_allowlist: [192.0.2.7]
    credentials:
      - {{id: k1, digest: "{digest("k1")}"}}
      - {{id: k4, digest: "{digest("k4")}"}}
  - id: depot
    name: Depot
    status: suspended
    credentials:
      - {{id: k5, digest: "{digest("k5")}"}}
"""


def wish(text: str, has_prune: bool = False) -> Wish:
    """What *text* declares."""
    declared = parse_declarations(text.encode(), "FILE", CATALOGUE)
    return Wish(declared.declarations, "declared in FILE", has_prune)


def made(target: ChangeTarget, text: str, has_prune: bool = False) -> tuple[Plan, Report]:
    """Plan and apply."""
    plan = make_plan(target, wish(text, has_prune))
    return plan, apply_plan(target, plan)


@WORLDS
def test_apply__fills_and_changes_and_does_nothing_twice(world: World, tmp_path: Path) -> None:
    """A registry holds what the first file says, then what the second one says; each only once."""
    with world(tmp_path) as target:
        for text, has_prune in ((FIRST, False), (SECOND, True)):
            plan, report = made(target, text, has_prune)
            assert (plan.refused, report.declined, report.error) == (0, (), None)
            assert report.made == plan.steps > 0
            again = make_plan(target, wish(text, has_prune))
            assert (again.differences, again.steps) == ((), 0)
        acme, depot = target.load()
        assert (acme.name, acme.contact, acme.owner, acme.rate_limit_rpm) == ("Acme", "", "Ops", 60)
        assert (acme.burst, acme.on_store_error, acme.is_allowlist_enabled) == (None, None, True)
        assert sorted(map(str, acme.scopes)) == ["crm:read", "orders:read"]
        assert [str(entry) for entry in acme.ip_allowlist] == ["192.0.2.7/32"]
        assert [one.id for one in acme.credentials] == ["k1", "k4"]
        assert (depot.status, depot.third_party_manager) == (Status.SUSPENDED, "Agency")
        assert [one.id for one in depot.credentials] == ["k5"]


@pytest.mark.parametrize("world", [sqlite_target, redis_target])
def test_apply__what_was_written_back_is_no_change(world: World, tmp_path: Path) -> None:
    """The file of a registry, pushed into it with prune, changes nothing; into another it makes it equal."""
    with world(tmp_path) as target:
        made(target, FIRST)
        text = dump_registry(target.load())
        assert make_plan(target, wish(text, has_prune=True)).differences == ()
        other = tmp_path / "other"
        other.mkdir()
        with world(other) as copy:
            made(copy, text)
            assert dump_registry(copy.load()) == text


@WORLDS
def test_apply__a_refusal_does_not_stop_the_others(world: World, tmp_path: Path) -> None:
    """An id that was deleted is known to the registry alone: it is told, and the rest is done."""
    with world(tmp_path) as target:
        made(target, FIRST)
        made(target, "integrations: []", has_prune=True)
        plan, report = made(target, "integrations: [{id: least, name: L}, {id: fresh, name: F}]")
        assert (plan.refused, report.made, report.unfinished) == (0, 1, 0)
        [declined] = report.declined
        assert declined.difference.integration_id == "least"
        assert declined.declined is not None
        assert declined.declined.code == "id_retired"
        assert "choose another id" in declined.declined.message
        assert [record.id for record in target.load()] == ["fresh"]
        told = report_document(report)
        assert told is not None
        assert told["declined"][0]["action"] == "integration.create"


@WORLDS
def test_apply__a_change_in_between_is_left_as_it_is(world: World, tmp_path: Path) -> None:
    """Who was changed since the plan is not touched, by no later step either; the others are."""
    with world(tmp_path) as real:
        made(real, FIRST)

        def meddle(batch: int) -> None:
            if batch == 1:
                [generation] = [one.generation for one in real.load() if one.id == "acme-erp"]
                edit = c.EditDetails(integration_id="acme-erp", owner="somebody")
                real.apply([Step(edit, generation)])

        target = Meddled(real, meddle)
        plan, report = made(target, SECOND)
        [declined] = report.declined
        assert declined.declined is not None
        assert (declined.declined.code, declined.made) == ("generation_conflict", 0)
        steps = {one.integration_id: len(one.steps) for one in plan.differences}
        assert report.unfinished == steps["acme-erp"] - 1
        acme, depot, _ = target.load()
        assert (acme.name, acme.owner) == ("Acme ERP", "somebody")
        assert "k5" in [one.id for one in depot.credentials]
        assert made(real, SECOND)[1].declined == ()


def test_apply__a_target_that_fails_ends_it_and_says_how_far_it_came(tmp_path: Path) -> None:
    """Nothing is sent after a failure; what was made stays, and the next run makes the rest."""

    def fail(batch: int) -> None:
        if batch == 2:
            raise TargetError("the store is gone", may_have_happened=True)

    with sqlite_target(tmp_path) as real:
        target = Meddled(real, fail)
        plan, report = made(target, FIRST)
        assert report.error is not None
        assert (str(report.error), target.batches) == ("the store is gone", [3, 2])
        assert (report.made, report.unfinished) == (3, plan.steps - 3)
        told = report_document(report)
        assert told is not None
        assert (told["error"], told["may_have_happened"]) == ("the store is gone", True)
        second, rest = made(real, FIRST)
        assert (second.count(Kind.ADD), second.count(Kind.CHANGE), rest.made) == (0, 2, 2)


def test_apply__batches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call has at most `STEPS_MAX` steps, which is what a registry takes at once."""
    assert STEPS_MAX <= REQUESTS_MAX
    monkeypatch.setattr(engine, "STEPS_MAX", 4)
    many = "\n".join(f"- {{id: i{n}, name: N}}" for n in range(9))
    with sqlite_target(tmp_path) as real:
        target = Meddled(real, lambda batch: None)
        _, report = made(target, f"integrations:\n{many}")
        assert (target.batches, report.made) == ([4, 4, 1], 9)


@pytest.mark.parametrize("bound", [("BODY_BYTES_MAX", 1_500), ("CALL_STEPS_MAX", 2)])
def test_api_target__splits_what_one_call_cannot_hold(
    bound: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch goes in as many calls as the bounds of a call take; all of it arrives, in order."""
    assert module.BODY_BYTES_MAX < call.BODY_BYTES_MAX * 0.9
    monkeypatch.setattr(module, *bound)
    many = "\n".join(f"- {{id: i{n}, name: {'n' * 128}, owner: {'o' * 250}}}" for n in range(12))
    with api_target(tmp_path) as target:
        _, report = made(target, f"integrations:\n{many}\n- {{id: last, name: {'n' * 128}}}")
        assert isinstance(target, ApiTarget)
        assert (report.made, report.error, target.calls) == (13, None, 7)
        assert len(target.load()) == 13


@WORLDS
def test_plan__tells_what_the_rules_refuse_beforehand(world: World, tmp_path: Path) -> None:
    """Who suspended cannot reactivate: the plan knows, from the registry and from the API alike."""
    text = f"""
integrations:
  - id: depot
    name: Depot
    status: active
    credentials: [{{id: k9, digest: "{digest("k9")}"}}]
"""
    with world(tmp_path) as target:
        made(target, FIRST)
        plan, report = made(target, text)
        [difference] = plan.differences
        [refusal] = difference.refusals
        assert (refusal.word, refusal.problem.code.word) == ("integration.reactivate", "same_administrator")
        assert (report.made, report.declined) == (1, ())
        told = plan_document(plan)
        assert told["integrations"][0]["refusals"][0]["code"] == "same_administrator"
        assert told["counts"]["refused"] == 1
