"""The audit chain: whatever is done to it is found and named, and no secret is ever in it."""

from __future__ import annotations

import doctest
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from sidecar.domain import audit, canonical, texts
from sidecar.domain.audit import (
    FINDINGS_MAX,
    GENESIS,
    Anchor,
    AuditEntry,
    AuditFormatError,
    ChainHead,
    ChainVerifier,
    FindingKind,
    StoredEntry,
    empty_chain,
    entry_digest,
    parse_anchor,
    parse_entry,
    verify,
)
from sidecar.domain.canonical import canonical_json
from tests.administration import NOW_US

LENGTH = 8


def entry(head: ChainHead, **given: object) -> AuditEntry:
    """The entry that follows *head*."""
    number = head.sequence + 1
    values: dict[str, object] = {
        "chain": head.chain,
        "sequence": number,
        "at_us": NOW_US + number,
        "actor": "ann",
        "role": "admin",
        "token_id": "tokenann",
        "action": "limit.set",
        "subject": "integration:acme",
        "generation": number,
        "summary": f"change {number}",
        "reason": "",
        "before": {"rate_limit_rpm": number},
        "after": {"rate_limit_rpm": number + 1},
        "record_digest": "",
        "source": "127.0.0.1",
        "request_id": f"req-{number}",
        "previous": head.digest,
    }
    return AuditEntry(**{**values, **given})  # type: ignore[arg-type]


def chain_of(length: int = LENGTH, chain: int = 0) -> list[StoredEntry]:
    """A chain as it is kept."""
    head = empty_chain(chain)
    kept = []
    for _ in range(length):
        made = entry(head)
        kept.append(made.to_stored())
        head = made.head
    return kept


def rewritten(stored: StoredEntry, **changes: object) -> StoredEntry:
    """*stored* with another content and the digest to match, as a forger would leave it."""
    body = canonical_json({**json.loads(stored.body), **changes})
    return stored._replace(body=body, digest=entry_digest(body))


def found(entries: Sequence[StoredEntry], **given: object) -> list[tuple[FindingKind, int, int]]:
    """What a verification finds, without the words."""
    report = verify(entries, **given)  # type: ignore[arg-type]
    assert not report.is_cut_short
    assert all(f"chain {finding.chain}" in finding.message for finding in report.findings)
    return [(finding.kind, finding.first, finding.last) for finding in report.findings]


@pytest.mark.parametrize(("module", "count"), [(audit, 1), (canonical, 1), (texts, 1)])
def test_audit__examples_in_its_docstrings(module: object, count: int) -> None:
    """The examples in the modules are true."""
    assert doctest.testmod(module) == doctest.TestResults(failed=0, attempted=count)  # type: ignore[arg-type]


def test_entry__round_trip() -> None:
    """An entry reads back as the same value, and its digest is over every byte of its body."""
    made = entry(empty_chain(), before={"credentials": {"a": None}}, after={"scopes": ["orders:read"]})
    stored = made.to_stored()
    assert parse_entry(stored.body) == made
    assert stored.digest == entry_digest(stored.body) == made.head.digest
    assert made.previous == GENESIS


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "null", "1", "{}", '{"chain":0}', "[" * 100_000, '{"sequence":' + "9" * 5_000 + "}"],
)
def test_entry__what_is_none_is_refused(body: str) -> None:
    """Anything else than an entry is refused with one error, however odd."""
    with pytest.raises(AuditFormatError):
        parse_entry(body)


@pytest.mark.parametrize(
    "changes", [{"sequence": "1"}, {"sequence": True}, {"actor": None}, {"before": []}, {"more": 1}]
)
def test_entry__types_are_checked(changes: dict[str, object]) -> None:
    """A body whose fields are of other types, or that has more of them, is no entry."""
    body = json.dumps({**json.loads(entry(empty_chain()).to_stored().body), **changes})
    with pytest.raises(AuditFormatError):
        parse_entry(body)


@pytest.mark.parametrize("value", [1.5, {"a": 0.1}, [float("nan")], {1: "a"}, b"x", {"a": object()}])
def test_canonical__no_fractions_and_no_other_types(value: object) -> None:
    """Only what every reader reads alike goes on record."""
    with pytest.raises(TypeError):
        canonical_json(value)  # type: ignore[arg-type]


def test_verify__an_intact_chain() -> None:
    """Nothing is found, and the head can be noted as an anchor."""
    kept = chain_of()
    report = verify(kept)
    assert report.is_intact
    assert report.entries_count == LENGTH
    assert report.head == ChainHead(0, LENGTH, kept[-1].digest, NOW_US + LENGTH)
    assert verify([]).is_intact


@pytest.mark.parametrize("place", range(LENGTH))
@pytest.mark.parametrize("changes", [{"actor": "bob"}, {"after": {}}, {"at_us": 1}, {"reason": "other"}])
def test_verify__an_altered_entry(place: int, changes: dict[str, object]) -> None:
    """One changed field of one entry is found, and that entry alone is named."""
    kept = chain_of()
    kept[place] = kept[place]._replace(body=rewritten(kept[place], **changes).body)
    assert found(kept) == [(FindingKind.ALTERED, place + 1, place + 1)]


@pytest.mark.parametrize("place", range(LENGTH - 1))
def test_verify__an_entry_rewritten_with_its_digest(place: int) -> None:
    """A forger who computes the digest again is betrayed by the next entry."""
    kept = chain_of()
    kept[place] = rewritten(kept[place], actor="bob")
    assert found(kept) == [(FindingKind.ALTERED, place + 1, place + 1)]


def test_verify__a_body_that_is_no_entry() -> None:
    """Garbage is an altered entry, not a crash."""
    kept = chain_of()
    kept[2] = kept[2]._replace(body="garbage")
    assert found(kept) == [(FindingKind.ALTERED, 3, 3)]


@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 3), (4, 4), (3, 6)])
def test_verify__missing_entries(first: int, last: int) -> None:
    """Removed entries are found, and the whole gap is named."""
    kept = [entry for entry in chain_of() if not first <= entry.sequence <= last]
    assert found(kept) == [(FindingKind.MISSING, first, last)]


@pytest.mark.parametrize("place", range(LENGTH - 1))
def test_verify__lines_in_another_order(place: int) -> None:
    """Two lines of an export that changed places are found, and nothing is taken for missing."""
    kept = chain_of()
    kept[place], kept[place + 1] = kept[place + 1], kept[place]
    assert (FindingKind.REORDERED, place + 1, place + 1) in found(kept)
    assert {FindingKind.REORDERED} == {kind for kind, _, _ in found(kept)}


def test_verify__rows_that_changed_places() -> None:
    """Two rows of a store whose contents were swapped are both named."""
    kept = chain_of()
    kept[2], kept[4] = (kept[4]._replace(sequence=3), kept[2]._replace(sequence=5))
    assert found(kept) == [(FindingKind.REORDERED, 3, 3), (FindingKind.REORDERED, 5, 5)]


def test_verify__a_repeated_line() -> None:
    """A line that occurs twice is out of order."""
    kept = chain_of()
    assert found([*kept, kept[3]]) == [(FindingKind.REORDERED, 4, 4)]


def test_verify__an_entry_of_another_chain() -> None:
    """An entry cannot be lent by another chain."""
    kept = chain_of()
    kept[3] = chain_of(chain=1)[3]._replace(chain=0)
    assert (FindingKind.REORDERED, 4, 4) in found(kept)


def test_verify__anchors_show_a_chain_that_was_rewritten_or_cut_off() -> None:
    """What a chain alone cannot show, a digest noted elsewhere does."""
    kept = chain_of()
    anchor = Anchor({0: 6}, kept[5].digest)
    assert found(kept, anchors=[anchor]) == []
    assert found(kept[:4]) == []
    assert found(kept[:4], anchors=[anchor]) == [(FindingKind.MISSING, 5, 6)]
    forged = []
    head = empty_chain()
    for _ in range(LENGTH):
        made = entry(head, actor="bob")
        forged.append(made.to_stored())
        head = made.head
    assert found(forged) == []
    assert found(forged, anchors=[anchor]) == [(FindingKind.ALTERED, 6, 6)]
    assert found(forged, anchors=[Anchor({1: 6}, anchor.digest)]) == []


def test_verify__findings_are_bounded() -> None:
    """A chain that is beyond repair does not fill the memory; the report says that it was cut short."""
    verifier = ChainVerifier()
    for number in range(1, FINDINGS_MAX + 50):
        verifier.add(StoredEntry(0, 3 * number, GENESIS, "garbage"))
    report = verifier.report()
    assert len(report.findings) == FINDINGS_MAX
    assert report.is_cut_short


def test_anchor__reads_back() -> None:
    """An anchor is one line of text; anything else is refused."""
    digest = chain_of()[5].digest
    assert parse_anchor(f"0:6:{digest}") == Anchor({0: 6}, digest)
    several = Anchor({0: 6, 2: 9, 255: 1}, digest)
    assert (str(several), parse_anchor(str(several))) == (f"0:6,2:9,255:1:{digest}", several)
    for text in (
        "",
        "0:6",
        f"0:6:{digest[:-1]}",
        f"x:6:{digest}",
        f"0:{'9' * 20}:{digest}",
        f"0:6:{digest}x",
    ):
        with pytest.raises(AuditFormatError):
            parse_anchor(text)


def test_entry__another_field_another_digest() -> None:
    """No field of an entry is outside of its digest."""
    made = entry(empty_chain())
    digests = {made.head.digest}
    for name, value in json.loads(made.to_stored().body).items():
        other = {"int": 99, "str": value if isinstance(value, int) else f"{value}x", "dict": {"x": 1}}
        changed = replace(made, **{name: other[type(value).__name__]})
        digests.add(changed.to_stored().digest)
    assert len(digests) == 1 + len(json.loads(made.to_stored().body))
