"""Earlier versions of a record, from the audit log alone."""

from __future__ import annotations

import doctest
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.domain import record_history
from sidecar.domain.audit import AuditEntry
from sidecar.domain.integrations import Integration
from sidecar.domain.lifecycle import commands as c
from sidecar.domain.record_history import HistoryError, version_of
from sidecar.domain.records import describe
from sidecar.domain.refusals import RefusedError
from tests.administration import ANN, BOB, ID, NOW_US, SECOND_US, apply, create, credential
from tests.property.test_lifecycle import COMMANDS


def entry(record: Integration, before: dict[str, object], after: dict[str, object]) -> AuditEntry:
    """The entry of the change that made *record*."""
    return AuditEntry(
        chain=0, sequence=record.generation, at_us=NOW_US, actor="ann", role="admin", token_id="", action="",
        subject=f"integration:{record.id}", generation=record.generation, summary="", reason="",
        before=before, after=after, record_digest="", source="", request_id="", previous="",
    )  # fmt: skip


def changed(commands: list[c.Command]) -> tuple[list[Integration], list[AuditEntry]]:
    """Every version that *commands* make, and their entries; refused commands change nothing."""
    versions: list[Integration] = []
    entries: list[AuditEntry] = []
    now_us = NOW_US
    for number, command in enumerate([create(credentials=(credential("k0"),)), *commands]):
        now_us += SECOND_US
        try:
            outcome = apply(versions[-1] if versions else None, command, (ANN, BOB)[number % 2], now_us)
        except RefusedError:
            continue
        if outcome.is_change and not outcome.is_deleted:
            versions.append(outcome.record)
            entries.append(entry(outcome.record, outcome.before, outcome.after))
    return versions, entries


@settings(max_examples=150)
@given(st.lists(COMMANDS, max_size=12), st.integers(0, 12))
def test_version_of__every_version(commands: list[c.Command], index: int) -> None:
    """All that is public is as it was, after any commands."""
    versions, entries = changed(commands)
    wanted = versions[min(index, len(versions) - 1)]
    found = version_of(versions[-1], wanted.generation, reversed(entries))
    assert found.generation == wanted.generation
    bare = replace(wanted, webhook_secrets=())
    assert describe(found) == describe(bare)


def test_version_of__missing_entries_are_an_error() -> None:
    """A pruned audit log, or one of another registry, is not taken for a history."""
    limits = [c.SetRateLimit(integration_id=ID, rate_limit_rpm=rpm) for rpm in (10, 20, 30)]
    versions, entries = changed(list(limits))
    for kept in (entries[:-1], entries[:-2] + entries[-1:], []):
        with pytest.raises(HistoryError):
            version_of(versions[-1], 2, reversed(kept))


def test_undone__its_example() -> None:
    """The example of the docstring holds."""
    assert doctest.testmod(record_history).failed == 0
