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


def test_apply__a_dry_run_answers_with_the_plan_and_its_digest(api: AdminApi) -> None:
    """Nothing is written; the digest applies exactly that plan, once."""
    before = api.revision()
    planned = api.change("/v1/apply?dry_run=true", {"file": FILE})
    assert (planned["is_dry_run"], planned["report"], api.revision()) == (True, None, before)
    assert planned["difference"]["counts"]["add"] == 2
    applied = api.change(
        "/v1/apply", {"file": FILE, "expected_plan": planned["plan"], "file_name": "all.yaml"}
    )
    assert applied["plan"] != ""
    assert (applied["report"]["steps_made"], applied["is_in_force"]) == (2, True)
    again = api.change("/v1/apply", {"file": FILE})
    assert (again["report"], again["difference"]["counts"]["unchanged"]) == (None, 2)


def test_apply__another_plan_than_the_expected_one_is_refused(api: AdminApi) -> None:
    """What was changed after the administrator looked at the plan is not overwritten."""
    planned = api.change("/v1/apply?dry_run=true", {"file": FILE})
    api.create("depot")
    before = api.revision()
    answer = api.call("POST", "/v1/apply", {"file": FILE, "expected_plan": planned["plan"]})
    api.refused(409, "plan_changed", answer)
    assert api.revision() == before


def test_apply__the_trail_names_who_why_and_which_call(api: AdminApi) -> None:
    """The reason is the given one, or the file's name; the changes of one call share its request id."""
    answer = api.call("POST", "/v1/apply", {"file": FILE, "file_name": "all.yaml"}, who="bob")
    entries = [entry for entry in api.trail() if entry["action"] == "integration.create"]
    assert {entry["reason"] for entry in entries} == {"declared in all.yaml"}
    assert {entry["request_id"] for entry in entries} == {answer.headers["X-Request-Id"]}
    assert {entry["actor"] for entry in entries} == {"bob"}


def test_apply__mistakes_of_the_file_are_named_with_their_lines(api: AdminApi) -> None:
    """All of them, and nothing is changed."""
    before = api.revision()
    wrong = "integrations:\n  - {id: acme, nam: Acme}\n  - {id: acme, name: Acme, rate_limit_rpm: 0}\n"
    answer = api.call("POST", "/v1/apply", {"file": wrong})
    document = api.refused(422, "invalid_file", answer)
    assert {problem["field"] for problem in document["problems"]} >= {"line 2", "line 3"}
    assert api.revision() == before


def test_apply__an_auditor_may_look_and_not_change(api: AdminApi) -> None:
    """The plan shows what the role refuses, and applying it changes nothing."""
    planned = api.change("/v1/apply?dry_run=true", {"file": FILE}, who="audrey")
    assert planned["difference"]["counts"]["steps"] == 0
    assert planned["difference"]["counts"]["refused"] == 2
    before = api.revision()
    applied = api.change("/v1/apply", {"file": FILE}, who="audrey")
    assert (applied["report"], api.revision()) == (None, before)


def test_apply__takes_a_larger_body_than_other_calls(api: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file above the bound of other calls passes; one above its own bound is refused and reported."""
    padding = "# " + "x" * BODY_BYTES_MAX + "\n"
    assert api.change("/v1/apply?dry_run=true", {"file": padding + FILE})["difference"]["counts"]["add"] == 2
    too_large = "#" * (file_endpoint.FILE_BYTES_MAX + 1)
    api.refused(413, "body_too_large", api.call("POST", "/v1/apply", {"file": too_large}))


def test_apply__has_a_deadline(api: AdminApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that does not end in time is ended, and the answer says what to do."""
    monkeypatch.setattr(file_endpoint, "APPLY_TIMEOUT_S", 0.0)
    document = api.refused(504, "timeout", api.call("POST", "/v1/apply", {"file": FILE}))
    assert "apply it again" in document["problems"][0]["remedy"]
