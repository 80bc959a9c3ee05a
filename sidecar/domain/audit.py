"""
The audit log: entries chained by SHA-256, and the check that finds altered, missing and moved entries.

An entry is stored as text, its *body*: canonical JSON that contains the previous entry's digest. The entry's
digest is SHA-256 over the body, so a changed byte breaks the chain at that entry, and a body that was
rewritten together with its digest breaks the chain at the next entry. A chain alone cannot show that its end
was cut off or rewritten; for that, `verify` takes anchors: digests that were recorded earlier, elsewhere.

A partitioned registry has one chain per partition. Entries contain no secret and no credential's digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, NamedTuple

from sidecar.domain.canonical import Json, canonical_json, sha256_hex

GENESIS = "0" * 64
"""The previous digest of a chain's first entry."""
FINDINGS_MAX = 1_000
"""Maximum number of findings that one check reports."""

_DOMAIN = "sidecar audit 1\n"  # domain separation: no other digest of this program begins with it


class AuditFormatError(ValueError):
    """A text is not an audit entry or an anchor."""


class ChainHead(NamedTuple):
    """The latest entry of a chain: its sequence (0 = the chain is empty), digest and time."""

    chain: int
    sequence: int
    digest: str
    at_us: int


class StoredEntry(NamedTuple):
    """
    One entry as it is stored and exported.

    `sequence` is its position: the key in the store, or the line in a file. `body` repeats the sequence, so a
    moved entry is detected.
    """

    chain: int
    sequence: int
    digest: str
    body: str


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """
    The permanent record of one change.

    `subject` is what was changed: `integration:<id>` or `administrator:<id>`. `generation` and
    `record_digest` are those of the stored record after the change, '' = no record. `before` and `after` hold
    the fields that changed. `source` is where the call came from, `previous` the previous entry's digest.
    """

    chain: int
    sequence: int
    at_us: int
    actor: str
    role: str
    token_id: str
    action: str
    subject: str
    generation: int
    summary: str
    reason: str
    before: Mapping[str, Json]
    after: Mapping[str, Json]
    record_digest: str
    source: str
    request_id: str
    previous: str

    def to_stored(self) -> StoredEntry:
        """Return the entry in its stored form."""
        body = canonical_json({name: getattr(self, name) for name in _FIELDS})
        return StoredEntry(self.chain, self.sequence, entry_digest(body), body)

    @property
    def head(self) -> ChainHead:
        """The head of a chain whose latest entry is this one."""
        return ChainHead(self.chain, self.sequence, self.to_stored().digest, self.at_us)


_TYPES: dict[str, type] = {
    "chain": int,
    "sequence": int,
    "at_us": int,
    "generation": int,
    "before": dict,
    "after": dict,
}
_FIELDS = tuple(field.name for field in fields(AuditEntry))


def empty_chain(chain: int = 0) -> ChainHead:
    """Return the head of a chain without entries."""
    return ChainHead(chain, 0, GENESIS, 0)


def next_time_us(latest_us: int, now_us: int) -> int:
    """
    Return the time of a new entry after an entry of *latest_us*: now, but always later than *latest_us*.

    So the times of a chain increase strictly, even if the clock steps back.
    """
    return max(now_us, latest_us + 1)


def entry_digest(body: str) -> str:
    """Return the digest of an entry: SHA-256 over its body, 64 hexadecimal digits."""
    return sha256_hex(_DOMAIN + body)


def parse_entry(body: str) -> AuditEntry:
    """
    Parse a body.

    Raises:
        AuditFormatError: it is not JSON, or does not have exactly the fields of an entry.
    """
    try:
        values: dict[str, Any] = json.loads(body)
    except (ValueError, RecursionError):
        raise AuditFormatError("an audit entry must be a JSON object") from None
    if not isinstance(values, dict) or set(values) != set(_FIELDS):
        raise AuditFormatError(f"an audit entry must have exactly the fields {', '.join(_FIELDS)}")
    for name in _FIELDS:
        if type(values[name]) is not _TYPES.get(name, str):
            raise AuditFormatError(
                f"{name} of an audit entry must be of type {_TYPES.get(name, str).__name__}"
            )
    return AuditEntry(**values)


class FindingKind(Enum):
    """The ways in which a chain, or a record that it describes, can be wrong."""

    ALTERED = "altered"
    MISSING = "missing"
    REORDERED = "reordered"
    RECORD_ALTERED = "record_altered"
    DERIVED_ALTERED = "derived_altered"


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One defect: entries `first` ... `last` of `chain`, and a sentence about the defect.

    If a record does not match its latest entry, the finding names that entry.
    """

    kind: FindingKind
    chain: int
    first: int
    last: int
    message: str


@dataclass(frozen=True, slots=True)
class ChainReport:
    """The result of a check of one chain; `head` is its end, for the next anchor."""

    head: ChainHead
    entries_count: int
    findings: tuple[Finding, ...]
    is_cut_short: bool = False
    """Whether there are more findings than are reported."""

    @property
    def is_intact(self) -> bool:
        """Whether there are no findings."""
        return not self.findings


class Anchor(NamedTuple):
    """
    The sequences of a log's chains at some time and a digest of their ends, recorded outside the log.

    `sequences` has an item for each chain with entries. `digest` is the entry's digest for one chain, and for
    several chains the SHA-256 over a line '<chain>:<sequence>:<digest>' for each.
    """

    sequences: Mapping[int, int]
    digest: str

    def __str__(self) -> str:
        """The form that `parse_anchor` reads."""
        sequences = ",".join(f"{chain}:{sequence}" for chain, sequence in self.sequences.items())
        return f"{sequences}:{self.digest}"


def anchor_of(heads: Iterable[ChainHead]) -> Anchor | None:
    """Return the anchor of a log with these *heads*; None = the log is empty."""
    ends = sorted(head for head in heads if head.sequence)
    if not ends:
        return None
    lines = "".join(f"{end.chain}:{end.sequence}:{end.digest}\n" for end in ends)
    digest = ends[0].digest if len(ends) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    return Anchor({end.chain: end.sequence for end in ends}, digest)


class ChainVerifier:
    """
    Checks one chain, entry by entry in stored order, in bounded memory.

    Pass every entry to `add`, then call `report`.
    """

    def __init__(self, chain: int = 0, anchors: Iterable[Anchor] = ()) -> None:
        """Check *chain*, also against its *anchors*."""
        named = [anchor for anchor in anchors if chain in anchor.sequences]
        self._anchors = {
            (anchor.sequences[chain], anchor.digest) for anchor in named if len(anchor.sequences) == 1
        }
        self.anchored_heads: dict[int, ChainHead | None] = {anchor.sequences[chain]: None for anchor in named}
        """The heads at the sequences that anchors name; None = the entry is missing."""
        self._head = empty_chain(chain)
        self._count = 0
        self._missing: dict[int, int] = {}  # first -> last of each gap
        self._findings: list[Finding] = []
        self._is_cut_short = False

    def add(self, stored: StoredEntry) -> AuditEntry | None:
        """Check the next stored entry and return it parsed; None = it cannot be parsed."""
        self._count += 1
        try:
            entry = parse_entry(stored.body)
        except AuditFormatError as error:
            self._find(FindingKind.ALTERED, stored.sequence, f"its body was altered: {error}")
            self._advance(stored.sequence, stored.digest, self._head.at_us)
            return None
        if entry_digest(stored.body) != stored.digest:
            message = "its body does not match its digest: one of them was altered"
            self._find(FindingKind.ALTERED, stored.sequence, message)
        elif any(at == entry.sequence and noted != stored.digest for at, noted in self._anchors):
            message = "its digest differs from the recorded one: the chain was rewritten at or before it"
            self._find(FindingKind.ALTERED, entry.sequence, message)
        if stored.sequence in self.anchored_heads:
            head = ChainHead(stored.chain, stored.sequence, stored.digest, entry.at_us)
            self.anchored_heads[stored.sequence] = head
        self._check_position(stored, entry)
        return entry

    def report(self) -> ChainReport:
        """Return the findings; an entry that an anchor names and that was not added is missing."""
        findings = list(self._findings)
        for first, last in sorted(self._missing.items()):
            findings.append(self._finding(FindingKind.MISSING, first, last, "removed from the chain"))
        last = max(self.anchored_heads, default=0)
        if last > self._head.sequence:
            first = self._head.sequence + 1
            message = "the end of the chain was cut off: an anchor names a later entry"
            findings.append(self._finding(FindingKind.MISSING, first, last, message))
        findings.sort(key=lambda finding: finding.first)
        is_cut_short = self._is_cut_short or len(findings) > FINDINGS_MAX
        return ChainReport(self._head, self._count, tuple(findings[:FINDINGS_MAX]), is_cut_short)

    def _check_position(self, stored: StoredEntry, entry: AuditEntry) -> None:
        """Check the entry's sequence and its link to the previous entry."""
        if (entry.chain, entry.sequence) != (stored.chain, stored.sequence):
            message = f"its position holds entry {entry.sequence} of chain {entry.chain}"
            self._find(FindingKind.REORDERED, stored.sequence, message)
            self._advance(stored.sequence, "", entry.at_us)  # '' = the next entry's link cannot be checked
            return
        if stored.sequence <= self._head.sequence:
            message = f"its position is after entry {self._head.sequence}"
            self._find(FindingKind.REORDERED, stored.sequence, message)
            self._close_gap(stored.sequence)
            return
        follows = stored.sequence == self._head.sequence + 1
        if follows and self._head.digest and entry.previous != self._head.digest:
            message = f"entry {stored.sequence} has another digest for it: one of the two was rewritten"
            self._find(FindingKind.ALTERED, self._head.sequence or stored.sequence, message)
        self._advance(stored.sequence, stored.digest, entry.at_us)

    def _advance(self, sequence: int, digest: str, at_us: int) -> None:
        expected = self._head.sequence + 1
        if sequence > expected:
            self._note_gap(expected, sequence - 1)
        elif sequence < expected:
            self._close_gap(sequence)
            return
        self._head = ChainHead(self._head.chain, sequence, digest, at_us)

    def _note_gap(self, first: int, last: int) -> None:
        if len(self._missing) < FINDINGS_MAX:
            self._missing[first] = last
        else:
            self._is_cut_short = True

    def _close_gap(self, sequence: int) -> None:
        """Remove *sequence* from the gaps: the entry is not missing, but out of order."""
        for first, last in self._missing.items():
            if first <= sequence <= last:
                del self._missing[first]
                if first < sequence:
                    self._missing[first] = sequence - 1
                if sequence < last:
                    self._missing[sequence + 1] = last
                return

    def _find(self, kind: FindingKind, sequence: int, message: str) -> None:
        if len(self._findings) < FINDINGS_MAX:
            self._findings.append(self._finding(kind, sequence, sequence, message))
        else:
            self._is_cut_short = True

    def _finding(self, kind: FindingKind, first: int, last: int, message: str) -> Finding:
        named = f"entry {first}" if first == last else f"entries {first} to {last}"
        return Finding(kind, self._head.chain, first, last, f"{named} of chain {self._head.chain}: {message}")


@dataclass(frozen=True, slots=True)
class LogReport:
    """The result of a check of all chains of a log; `anchor` is for the next check, '' = the log is empty."""

    chains: tuple[ChainReport, ...]
    findings: tuple[Finding, ...]
    anchor: str

    @property
    def entries_count(self) -> int:
        """The number of entries in all chains."""
        return sum(chain.entries_count for chain in self.chains)


class LogVerifier:
    """Checks a log of any number of chains, each by a `ChainVerifier`."""

    def __init__(self, anchors: Iterable[Anchor] = ()) -> None:
        """Check also against *anchors*: the chains that they name must exist."""
        self._anchors = tuple(anchors)
        self.chains: dict[int, ChainVerifier] = {}
        for chain in (chain for anchor in self._anchors for chain in anchor.sequences):
            self.chain(chain)

    def chain(self, number: int) -> ChainVerifier:
        """Return the verifier of chain *number*."""
        if number not in self.chains:
            self.chains[number] = ChainVerifier(number, self._anchors)
        return self.chains[number]

    def report(self) -> LogReport:
        """Return the findings of all chains."""
        reports = tuple(self.chains[chain].report() for chain in sorted(self.chains))
        findings = [finding for report in reports for finding in report.findings]
        for anchor in self._anchors:
            heads = [self.chains[chain].anchored_heads[at] for chain, at in anchor.sequences.items()]
            present = [head for head in heads if head is not None]  # a missing head has a finding already
            if len(present) == len(heads) > 1 and anchor_of(present) != anchor:
                message = f"an entry that anchor {anchor} names, or an entry before it, was rewritten"
                first = present[0]
                findings.append(
                    Finding(FindingKind.ALTERED, first.chain, first.sequence, first.sequence, message)
                )
        anchor_now = anchor_of(report.head for report in reports)
        return LogReport(reports, tuple(findings[:FINDINGS_MAX]), str(anchor_now or ""))


def verify(entries: Iterable[StoredEntry], chain: int = 0, anchors: Iterable[Anchor] = ()) -> ChainReport:
    """
    Check a complete chain; see `ChainVerifier`.

    >>> verify([]).is_intact
    True
    """
    verifier = ChainVerifier(chain, anchors)
    for stored in entries:
        verifier.add(stored)
    return verifier.report()


def parse_anchor(text: str) -> Anchor:
    """
    Parse '<chain>:<sequence>[,<chain>:<sequence>...]:<digest>'.

    Raises:
        AuditFormatError: *text* has another form.
    """
    match = _ANCHOR.fullmatch(text)
    if match is None:
        raise AuditFormatError(
            f"anchor is {text[:100]!a}; it must be"
            " '<chain>:<sequence>[,<chain>:<sequence>...]:<64 hex digits>'"
        )
    pairs = [pair.split(":") for pair in match[1].split(",")]
    return Anchor({int(chain): int(sequence) for chain, sequence in pairs}, match[2])


_ANCHOR = re.compile(r"([0-9]{1,16}:[0-9]{1,16}(?:,[0-9]{1,16}:[0-9]{1,16}){0,255}):([0-9a-f]{64})")
