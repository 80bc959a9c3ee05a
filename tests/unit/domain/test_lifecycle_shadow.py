"""Which rules of an integration are in shadow: set as a whole, or together with the rule itself."""

from __future__ import annotations

import pytest

from sidecar.domain.enforcement import NO_RULES, Rule
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.refusals import Code, InvalidError
from tests.administration import ID, active, apply, create
from tests.unit.domain.test_lifecycle_allowlist import SEEN


def test_set_shadow__replaces_all_rules() -> None:
    """The same again is no change, and no rule enforces everything."""
    command = c.SetShadow(integration_id=ID, shadow=("limit", "allowlist"))
    outcome = apply(active(), command)
    assert outcome.record.shadow == {Rule.ALLOWLIST, Rule.LIMIT}
    assert outcome.after == {"shadow": ["allowlist", "limit"]}
    assert not apply(outcome.record, command).is_change
    enforced = apply(outcome.record, c.SetShadow(integration_id=ID, shadow=()))
    assert (enforced.record.shadow, enforced.summary) == (NO_RULES, "enforced every rule")


def test_set_shadow__names_unknown_rules() -> None:
    """Suspension is not one of them."""
    for command in (c.SetShadow(integration_id=ID, shadow=("limit", "suspension")),):
        with pytest.raises(InvalidError) as caught:
            apply(active(), command)
        assert [(problem.code, problem.field) for problem in caught.value.problems] == [
            (Code.INVALID_VALUE, "shadow[1]")
        ]
    with pytest.raises(InvalidError):
        apply(None, create(shadow=("all",)))
    assert apply(None, create(shadow=("scopes",))).record.shadow == {Rule.SCOPES}


@pytest.mark.parametrize("was", [NO_RULES, frozenset(Rule)])
@pytest.mark.parametrize(("in_shadow", "expected"), [(None, None), (True, True), (False, False)])
def test_in_shadow__comes_with_the_rule(
    was: frozenset[Rule], in_shadow: bool | None, expected: bool | None
) -> None:
    """One change sets the rule and its shadow, so that a new rule refuses nobody in between."""
    record = apply(active(), c.SetShadow(integration_id=ID, shadow=tuple(was))).record
    limit = c.SetRateLimit(integration_id=ID, rate_limit_rpm=7, in_shadow=in_shadow)
    enable = c.EnableAllowlist(integration_id=ID, in_shadow=in_shadow)
    for command, rule in ((limit, Rule.LIMIT), (enable, Rule.ALLOWLIST)):
        shadow = apply(record, command).record.shadow
        assert (rule in shadow) is (rule in was if expected is None else expected)
        assert shadow - {rule} == was - {rule}


def test_enable__in_shadow_says_that_nobody_is_refused() -> None:
    """The warning of a lock-out names what would happen."""
    off = apply(active(), c.DisableAllowlist(integration_id=ID)).record
    for in_shadow, expected in ((True, "would be refused"), (False, "are refused")):
        command = c.EnableAllowlist(integration_id=ID, in_shadow=in_shadow)
        (notice,) = apply(off, command, facts=SEEN).notices
        assert notice.code == "lock_out"
        assert expected in notice.message
