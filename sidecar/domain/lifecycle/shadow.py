"""Rules of shadow mode: which rules of an integration are counted but refuse nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sidecar.domain.enforcement import RULE_NAMES, Rule, rule_names
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.outcome import CommandContext, Draft
from sidecar.domain.refusals import Code, Problem, raise_for


def set_rules(record: Integration, command: c.SetShadow, context: CommandContext) -> Draft:
    """Set the rules in shadow."""
    rules = parse_rules(command.shadow)
    said = f"put {', '.join(rule_names(rules))} in shadow" if rules else "enforced every rule"
    return Draft(replace(record, shadow=rules), said)


def with_shadow(record: Integration, rule: Rule, in_shadow: bool | None) -> Integration:
    """Return *record* with *rule* in shadow or enforced; None = as it is."""
    if in_shadow is None:
        return record
    return replace(record, shadow=record.shadow | {rule} if in_shadow else record.shadow - {rule})


def parse_rules(names: Sequence[str]) -> frozenset[Rule]:
    """
    Parse names of rules.

    Raises:
        InvalidError: every name that is not one of a rule.
    """
    known = ", ".join(RULE_NAMES)
    raise_for(
        [
            Problem(
                Code.INVALID_VALUE,
                f"shadow[{index}]",
                f"shadow has {name[:80]!a}; it must be one of {known}",
                "send the names of the rules to put in shadow, or none to enforce every rule",
            )
            for index, name in enumerate(names[: len(RULE_NAMES) + 1])
            if name not in RULE_NAMES
        ]
    )
    return frozenset(map(Rule, names))
