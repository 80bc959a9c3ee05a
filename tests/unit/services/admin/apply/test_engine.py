"""Plans and their application, on real registries."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sidecar.domain.changes import ChangeRequest
from sidecar.domain.declared import DifferenceKind
from sidecar.domain.integrations import Status
from sidecar.domain.lifecycle import commands as c
from sidecar.services.admin.apply import engine
from sidecar.services.admin.apply.document import plan_digest, plan_view, report_view
from sidecar.services.admin.apply.engine import STEPS_MAX
from sidecar.stores.registry.file.registry_file import dump_registry
from sidecar.stores.registry.protocol import REQUESTS_MAX, RegistryError
from tests.administration import ANN, digest

from .registries import CONTEXT, Target, redis_target, sqlite_target

Opened = Callable[[Path], AbstractContextManager[Target]]
REGISTRIES = pytest.mark.parametrize("opened", [sqlite_target, redis_target])

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


@REGISTRIES
def test_apply__fills_and_changes_and_does_nothing_twice(opened: Opened, tmp_path: Path) -> None:
    """A registry holds what the first file says, then what the second one says; each only once."""
    with opened(tmp_path) as target:
        for text, has_prune in ((FIRST, False), (SECOND, True)):
            plan, report = target.apply(text, has_prune)
            assert (plan.refused, report.declined, report.error) == (0, (), None)
            assert report.made == plan.steps > 0
            again = target.plan(text, has_prune)
            assert (again.differences, again.steps) == ((), 0)
        acme, depot = target.load()
        assert (acme.name, acme.contact, acme.owner, acme.rate_limit_rpm) == ("Acme", "", "Ops", 60)
        assert (acme.burst, acme.on_store_error, acme.is_allowlist_enabled) == (None, None, True)
        assert sorted(map(str, acme.scopes)) == ["crm:read", "orders:read"]
        assert [str(entry) for entry in acme.ip_allowlist] == ["192.0.2.7/32"]
        assert [credential.id for credential in acme.credentials] == ["k1", "k4"]
        assert (depot.status, depot.third_party_manager) == (Status.SUSPENDED, "Agency")
        assert [credential.id for credential in depot.credentials] == ["k5"]


@REGISTRIES
def test_apply__what_was_written_back_is_no_change(opened: Opened, tmp_path: Path) -> None:
    """The file of a registry, pushed into it with prune, changes nothing; into another it makes it equal."""
    with opened(tmp_path) as target:
        target.apply(FIRST)
        text = dump_registry(target.load())
        assert target.plan(text, has_prune=True).differences == ()
        other = tmp_path / "other"
        other.mkdir()
        with opened(other) as copy:
            copy.apply(text)
            assert dump_registry(copy.load()) == text


@REGISTRIES
def test_apply__a_refusal_does_not_stop_the_others(opened: Opened, tmp_path: Path) -> None:
    """An id that was deleted is known to the registry alone: it is reported, and the rest is done."""
    with opened(tmp_path) as target:
        target.apply(FIRST)
        target.apply("integrations: []", has_prune=True)
        plan, report = target.apply("integrations: [{id: least, name: L}, {id: fresh, name: F}]")
        assert (plan.refused, report.made, report.unfinished) == (0, 1, 0)
        [declined] = report.declined
        assert declined.difference.integration_id == "least"
        assert declined.declined is not None
        assert declined.declined.code == "id_retired"
        assert "choose another id" in declined.declined.message
        assert [record.id for record in target.load()] == ["fresh"]
        assert report_view(target.registry, report)["declined"][0]["action"] == "integration.create"


@REGISTRIES
def test_apply__a_change_in_between_is_left_as_it_is(opened: Opened, tmp_path: Path) -> None:
    """Who was changed since the plan is not touched, by no later step either; the others are."""
    with opened(tmp_path) as target:
        target.apply(FIRST)
        target.batches.clear()

        async def meddle(batch: int) -> None:
            if batch == 1:
                edit = c.EditDetails(integration_id="acme-erp", texts={"owner": "somebody"})
                await target.registry.apply(ChangeRequest(edit, ANN, CONTEXT, None))

        target.before_batch = meddle
        plan, report = target.apply(SECOND)
        [declined] = report.declined
        assert declined.declined is not None
        assert (declined.declined.code, declined.made) == ("generation_conflict", 0)
        steps = {difference.integration_id: len(difference.steps) for difference in plan.differences}
        assert report.unfinished == steps["acme-erp"] - 1
        acme, depot, _ = target.load()
        assert (acme.name, acme.owner) == ("Acme ERP", "somebody")
        assert "k5" in [credential.id for credential in depot.credentials]
        target.before_batch = None
        assert target.apply(SECOND)[1].declined == ()


def test_apply__a_registry_that_fails_ends_it_and_says_how_far_it_came(tmp_path: Path) -> None:
    """Nothing is sent after a failure; what was made stays, and the next run makes the rest."""

    async def fail(batch: int) -> None:
        if batch == 2:
            raise RegistryError("the store is gone", may_have_happened=True)

    with sqlite_target(tmp_path) as target:
        target.before_batch = fail
        plan, report = target.apply(FIRST)
        assert report.error is not None
        assert (str(report.error), target.batches) == ("the store is gone", [3, 2])
        assert (report.made, report.unfinished) == (3, plan.steps - 3)
        view = report_view(target.registry, report)
        assert (view["error"], view["may_have_happened"]) == ("the store is gone", True)
        target.before_batch = None
        second, rest = target.apply(FIRST)
        assert (second.count(DifferenceKind.ADD), second.count(DifferenceKind.CHANGE), rest.made) == (0, 2, 2)


def test_apply__batches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call has at most `STEPS_MAX` steps, which is what a registry takes at once."""
    assert STEPS_MAX <= REQUESTS_MAX
    monkeypatch.setattr(engine, "STEPS_MAX", 4)
    many = "\n".join(f"- {{id: i{n}, name: N}}" for n in range(9))
    with sqlite_target(tmp_path) as target:
        _, report = target.apply(f"integrations:\n{many}")
        assert (target.batches, report.made) == ([4, 4, 1], 9)


def test_plan_digest__names_what_would_be_done(tmp_path: Path) -> None:
    """The same comparison has the same digest; another change, or a change in between, has another."""
    with sqlite_target(tmp_path) as target:
        digests = {plan_digest(target.plan(text)) for text in (FIRST, FIRST, SECOND)}
        assert len(digests) == 2
        target.apply(FIRST)
        before = plan_digest(target.plan(SECOND))
        edit = c.EditDetails(integration_id="depot", texts={"owner": "somebody"})
        target.run(target.registry.apply(ChangeRequest(edit, ANN, CONTEXT, None)))
        assert plan_digest(target.plan(SECOND)) != before


@REGISTRIES
def test_plan__tells_what_the_rules_refuse_beforehand(opened: Opened, tmp_path: Path) -> None:
    """Who suspended cannot reactivate, and the plan knows it."""
    text = f"""
integrations:
  - id: depot
    name: Depot
    status: active
    credentials: [{{id: k9, digest: "{digest("k9")}"}}]
"""
    with opened(tmp_path) as target:
        target.apply(FIRST)
        plan, report = target.apply(text)
        [difference] = plan.differences
        [refusal] = difference.refusals
        assert (refusal.action_name, refusal.problem.code.text) == (
            "integration.reactivate",
            "same_administrator",
        )
        assert (report.made, report.declined) == (1, ())
        reported = plan_view(plan)
        assert reported["integrations"][0]["refusals"][0]["code"] == "same_administrator"
        assert reported["counts"]["refused"] == 1
