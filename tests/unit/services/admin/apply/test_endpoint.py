"""`POST /v1/apply`: a posted file, compared with the registry and applied on the server."""

from __future__ import annotations

import pytest

from sidecar.services.admin.apply import file_endpoint
from sidecar.services.admin.call import BODY_BYTES_MAX
from tests.unit.services.admin.admin_api import AdminApi

FILE = """
integrations:
  - {id: acme, name: Acme, scopes: [orders:read]}
  - {id: depot, name: Depot}
"""


def test_apply__a_dry_run_answers_with_the_plan_and_its_digest(world: AdminApi) -> None:
    """Nothing is written; the digest applies exactly that plan, once."""
    before = world.revision()
    planned = world.change("/v1/apply?dry_run=true", {"file": FILE})
    assert (planned["is_dry_run"], planned["report"], world.revision()) == (True, None, before)
    assert planned["difference"]["counts"]["add"] == 2
    applied = world.change(
        "/v1/apply", {"file": FILE, "expected_plan": planned["plan"], "file_name": "all.yaml"}
    )
    assert applied["plan"] != ""
    assert (applied["report"]["steps_made"], applied["is_in_force"]) == (2, True)
    again = world.change("/v1/apply", {"file": FILE})
    assert (again["report"], again["difference"]["counts"]["unchanged"]) == (None, 2)


def test_apply__another_plan_than_the_expected_one_is_refused(world: AdminApi) -> None:
    """What was changed after the administrator looked at the plan is not overwritten."""
    planned = world.change("/v1/apply?dry_run=true", {"file": FILE})
    world.create("depot")
    before = world.revision()
    answer = world.call("POST", "/v1/apply", {"file": FILE, "expected_plan": planned["plan"]})
    world.refused(409, "plan_changed", answer)
    assert world.revision() == before


def test_apply__the_trail_names_who_why_and_which_call(world: AdminApi) -> None:
    """The reason is the given one, or the file's name; the changes of one call share its request id."""
    answer = world.call("POST", "/v1/apply", {"file": FILE, "file_name": "all.yaml"}, who="bob")
    entries = [entry for entry in world.trail() if entry["action"] == "integration.create"]
    assert {entry["reason"] for entry in entries} == {"declared in all.yaml"}
    assert {entry["request_id"] for entry in entries} == {answer.headers["X-Request-Id"]}
    assert {entry["actor"] for entry in entries} == {"bob"}


def test_apply__mistakes_of_the_file_are_named_with_their_lines(world: AdminApi) -> None:
    """All of them, and nothing is changed."""
    before = world.revision()
    wrong = "integrations:\n  - {id: acme, nam: Acme}\n  - {id: acme, name: Acme, rate_limit_rpm: 0}\n"
    answer = world.call("POST", "/v1/apply", {"file": wrong})
    document = world.refused(422, "invalid_file", answer)
    assert {problem["field"] for problem in document["problems"]} >= {"line 2", "line 3"}
    assert world.revision() == before


def test_apply__an_auditor_may_look_and_not_change(world: AdminApi) -> None:
    """The plan tells what the role refuses, and applying it changes nothing."""
    planned = world.change("/v1/apply?dry_run=true", {"file": FILE}, who="audrey")
    assert planned["difference"]["counts"]["steps"] == 0
    assert planned["difference"]["counts"]["refused"] == 2
    before = world.revision()
    applied = world.change("/v1/apply", {"file": FILE}, who="audrey")
    assert (applied["report"], world.revision()) == (None, before)


def test_apply__takes_a_larger_body_than_other_calls(
    world: AdminApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file above the bound of other calls passes; one above its own bound is refused, and told."""
    padding = "# " + "x" * BODY_BYTES_MAX + "\n"
    assert (
        world.change("/v1/apply?dry_run=true", {"file": padding + FILE})["difference"]["counts"]["add"] == 2
    )
    too_large = "#" * (file_endpoint.FILE_BYTES_MAX + 1)
    world.refused(413, "body_too_large", world.call("POST", "/v1/apply", {"file": too_large}))


def test_apply__has_a_deadline(world: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that does not end in time is ended, and the answer says what to do."""
    monkeypatch.setattr(file_endpoint, "APPLY_TIMEOUT_S", 0.0)
    document = world.refused(504, "timeout", world.call("POST", "/v1/apply", {"file": FILE}))
    assert "apply it again" in document["problems"][0]["remedy"]
