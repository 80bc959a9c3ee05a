"""Verdicts, reasons, decision ids and the rounding of times."""

from __future__ import annotations

import pytest

from sidecar.domain.answers import retry_after_s, seconds_up
from sidecar.domain.decision_ids import DECISION_ID_LENGTH, DecisionIds
from sidecar.domain.decisions import Reason, Verdict

ANSWERS = {
    Reason.OK: (Verdict.ALLOW, 200, 0),
    Reason.MISSING_CREDENTIAL: (Verdict.DENY_403, 403, 16),
    Reason.MALFORMED_CREDENTIAL: (Verdict.DENY_403, 403, 16),
    Reason.UNKNOWN_CREDENTIAL: (Verdict.DENY_403, 403, 16),
    Reason.EXPIRED_CREDENTIAL: (Verdict.DENY_403, 403, 16),
    Reason.INTEGRATION_SUSPENDED: (Verdict.DENY_403, 403, 7),
    Reason.IP_NOT_ALLOWED: (Verdict.DENY_403, 403, 7),
    Reason.PATH_REFUSED: (Verdict.DENY_403, 403, 7),
    Reason.SCOPE_MISSING: (Verdict.DENY_403, 403, 7),
    Reason.RATE_LIMITED: (Verdict.DENY_429, 429, 8),
    Reason.STORE_UNAVAILABLE: (Verdict.DENY_403, 503, 14),
    Reason.OVERLOADED: (Verdict.DENY_403, 503, 14),
    Reason.URI_TOO_LONG: (Verdict.DENY_403, 414, 7),
    Reason.ROUTE_UNKNOWN: (Verdict.DENY_403, 403, 7),
    Reason.METHOD_NOT_ALLOWED: (Verdict.DENY_403, 403, 7),
    Reason.ROUTE_MISCONFIGURED: (Verdict.DENY_403, 403, 7),
    Reason.KEY_FLOOD: (Verdict.DENY_429, 429, 8),
}
"""The table of answers, written out a second time."""


def test_reasons__are_a_closed_list() -> None:
    """Every reason has its row in the table of answers, and none is a hidden alias of another."""
    assert list(Reason) == list(ANSWERS)
    assert len(Reason.__members__) == len(ANSWERS)


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.label)
def test_reason__row_of_the_table(reason: Reason) -> None:
    """Verdict, HTTP status and gRPC code are those of the table; the word is the name in lower case."""
    assert (reason.verdict, reason.http_status, reason.grpc_code) == ANSWERS[reason]
    assert reason.label == reason.name.lower()


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.label)
def test_reason__a_denial_never_has_code_0(reason: Reason) -> None:
    """Envoy lets a request through whose status code is 0, so only an allow may have it."""
    assert (reason.grpc_code == 0) == (reason.verdict is Verdict.ALLOW) == (reason.http_status == 200)


def test_reason__credential_faults_look_alike() -> None:
    """Malformed, unknown and expired keys have one public word; a missing key has its own."""
    faults = {reason for reason in Reason if reason.is_credential_fault}
    assert faults == {
        Reason.MISSING_CREDENTIAL,
        Reason.MALFORMED_CREDENTIAL,
        Reason.UNKNOWN_CREDENTIAL,
        Reason.EXPIRED_CREDENTIAL,
    }
    assert {reason.public_label for reason in faults} == {"missing_credential", "unknown_credential"}
    assert Reason.MISSING_CREDENTIAL.public_label == "missing_credential"


@pytest.mark.parametrize("reason", [r for r in Reason if not r.is_credential_fault], ids=lambda r: r.label)
def test_reason__other_reasons_are_public_as_they_are(reason: Reason) -> None:
    """A known caller gets the true reason."""
    assert reason.public_label == reason.label


def test_decision_ids__are_unique_ordered_and_of_one_length() -> None:
    """Ids of one process never repeat and sort as they were given; templates rely on their length."""
    ids = DecisionIds()
    given = [ids() for _ in range(1_000)]
    assert sorted(set(given)) == given
    assert {len(decision_id) for decision_id in given} == {DECISION_ID_LENGTH}
    assert all(decision_id.isascii() and decision_id.isalnum() for decision_id in given)


def test_decision_ids__differ_between_processes() -> None:
    """Each source has a random head, so a fleet needs no coordination."""
    heads = {DecisionIds()()[:10] for _ in range(50)}
    assert len(heads) == 50


def test_decision_ids__of_a_named_process() -> None:
    """A test may fix the head."""
    ids = DecisionIds("0123456789")
    assert [ids(), ids()] == ["0123456789000000000000", "0123456789000000000001"]


@pytest.mark.parametrize("process_id", ["short", "elevenchars", "UPPER-CASE", "non-ascii\u00e9"])
def test_decision_ids__refuse_a_head_of_another_shape(process_id: str) -> None:
    """A head of another length would break every answer rendered from a template."""
    with pytest.raises(ValueError, match="ten characters of 0-9 and a-z"):
        DecisionIds(process_id)


@pytest.mark.parametrize(
    ("duration_us", "expected_s"),
    [(0, 0), (1, 1), (999_999, 1), (1_000_000, 1), (1_000_001, 2), (1_764_000_000_000_001, 1_764_000_001)],
)
def test_seconds_up__rounds_up(duration_us: int, expected_s: int) -> None:
    """A client that waits the stated seconds never comes too early."""
    assert seconds_up(duration_us) == expected_s


@pytest.mark.parametrize(
    ("retry_after_us", "expected_s"), [(0, 1), (1, 1), (6_000, 1), (1_000_001, 2), (60_000_000, 60)]
)
def test_retry_after_s__is_at_least_one(retry_after_us: int, expected_s: int) -> None:
    """Retry-After: 0 would invite a busy loop."""
    assert retry_after_s(retry_after_us) == expected_s
