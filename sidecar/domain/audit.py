"""
The audit log: entries chained by SHA-256, and the check that finds what was altered, lost or moved.

An entry is kept as text, its *body*: canonical JSON that holds the digest of the entry before. Its digest
is SHA-256 over the body, so one changed byte breaks the chain at that entry, and a body that was rewritten
together with its digest breaks it at the next one. What a chain alone cannot show is that its end was cut
off or wholly rewritten; for that, `verify` takes anchors: digests noted earlier, elsewhere.

A registry that is spread over partitions has one chain in each. Entries never hold a secret, nor a
credential's digest.
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
"""What the first entry of a chain carries as the digest of the one before."""
FINDINGS_MAX = 1_000
"""Findings that one check reports; a chain with more is beyond naming them one by one."""

_DOMAIN = "sidecar audit 1\n"  # keeps these digests apart from all others
_DIGEST = re.compile(r"[0-9a-f]{64}")


class AuditFormatError(ValueError):
    """A body is no audit entry."""


class ChainHead(NamedTuple):
    """The latest entry of a chain: its sequence (0 = the chain is empty), digest and time."""

    chain: int
    sequence: int
    digest: str
    at_us: int


class StoredEntry(NamedTuple):
    """
    One entry as it is kept and exported.

    `sequence` is the place where it was found: the key in the store, the line in a file. `body` repeats
    it, so an entry that was moved gives itself away.
    """

    chain: int
    sequence: int
    digest: str
    body: str


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """
    One change, on record for ever.

    `subject` is what was changed: `integration:<id>` or `administrator:<id>`. `generation` is that of
    the record afterwards; `record_digest` is the digest of the record as stored afterwards, '' = none.
    `before` and `after` hold what changed. `source` is where the call came from, `previous` the digest of
    the entry before.
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
        """The entry as it is kept."""
        body = canonical_json({name: getattr(self, name) for name in _FIELDS})
        return StoredEntry(self.chain, self.sequence, entry_digest(body), body)

    @property
    def head(self) -> ChainHead:
        """The head of the chain once this entry is its latest."""
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
    """The head of a chain without entries."""
    return ChainHead(chain, 0, GENESIS, 0)


def next_time_us(latest_us: int, now_us: int) -> int:
    """
    The time to put on an entry that follows one of *latest_us*: now, but always later than that one.

    So the times of a chain are in its order and never equal, also when the clock steps back.
    """
    return max(now_us, latest_us + 1)


def entry_digest(body: str) -> str:
    """The digest of an entry: SHA-256 over its body, 64 hexadecimal digits."""
    return sha256_hex(_DOMAIN + body)


def parse_entry(body: str) -> AuditEntry:
    """
    Read a body.

    Raises:
        AuditFormatError: it is not JSON, or not exactly the fields of an entry.
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
    """What is wrong with a chain, or with the records beside it."""

    ALTERED = "altered"
    MISSING = "missing"
    REORDERED = "reordered"
    RECORD_ALTERED = "record_altered"
    DERIVED_ALTERED = "derived_altered"


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One thing that is wrong: entries `first` ... `last` of `chain`, and a sentence about it.

    For a record that does not match its latest entry, that entry is named.
    """

    kind: FindingKind
    chain: int
    first: int
    last: int
    message: str


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What a check found in one chain; `head` is its end, to be noted as the next anchor."""

    head: ChainHead
    entries_count: int
    findings: tuple[Finding, ...]
    is_cut_short: bool = False
    """There were more findings than are reported."""

    @property
    def is_intact(self) -> bool:
        """True when nothing was found."""
        return not self.findings


class Anchor(NamedTuple):
    """
    How far the chains of a log were, and a digest of their ends; noted earlier and kept elsewhere.

    `places` holds the sequence of each chain that had entries. The digest of one place is that of its entry,
    of several places the SHA-256 over a line '<chain>:<sequence>:<digest>' for each.
    """

    places: Mapping[int, int]
    digest: str

    def __str__(self) -> str:
        """As `parse_anchor` reads it."""
        places = ",".join(f"{chain}:{sequence}" for chain, sequence in self.places.items())
        return f"{places}:{self.digest}"


def anchor_of(heads: Iterable[ChainHead]) -> Anchor | None:
    """The anchor of a log whose chains have these *heads*; None = the log is empty."""
    ends = sorted(head for head in heads if head.sequence)
    if not ends:
        return None
    lines = "".join(f"{end.chain}:{end.sequence}:{end.digest}\n" for end in ends)
    digest = ends[0].digest if len(ends) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    return Anchor({end.chain: end.sequence for end in ends}, digest)


class ChainVerifier:
    """
    Checks one chain entry by entry, in the order in which they are kept; memory does not grow with it.

    Feed every entry to `add`, then ask for the `report`.
    """

    def __init__(self, chain: int = 0, anchors: Iterable[Anchor] = ()) -> None:
        """Check *chain*, also against the *anchors* of it."""
        named = [anchor for anchor in anchors if chain in anchor.places]
        self._anchors = {(anchor.places[chain], anchor.digest) for anchor in named if len(anchor.places) == 1}
        self.ends: dict[int, ChainHead | None] = {anchor.places[chain]: None for anchor in named}
        """The heads at the places that anchors name; None = no entry is there."""
        self._head = empty_chain(chain)
        self._count = 0
        self._missing: dict[int, int] = {}  # first -> last of each gap
        self._findings: list[Finding] = []
        self._is_cut_short = False

    def add(self, stored: StoredEntry) -> AuditEntry | None:
        """Take the next entry as kept; returns it parsed, None = it is none."""
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
            message = "its digest is not the one that was noted: the chain was rewritten at or before it"
            self._find(FindingKind.ALTERED, entry.sequence, message)
        if stored.sequence in self.ends:
            self.ends[stored.sequence] = ChainHead(stored.chain, stored.sequence, stored.digest, entry.at_us)
        self._place(stored, entry)
        return entry

    def report(self) -> ChainReport:
        """What was found; entries that anchors know of and that never came are missing."""
        findings = list(self._findings)
        for first, last in sorted(self._missing.items()):
            findings.append(self._finding(FindingKind.MISSING, first, last, "removed from the chain"))
        beyond = max((sequence for sequence in self.ends if sequence > self._head.sequence), default=0)
        if beyond:
            first = self._head.sequence + 1
            message = "the end of the chain was cut off: an anchor was noted there"
            findings.append(self._finding(FindingKind.MISSING, first, beyond, message))
        findings.sort(key=lambda finding: finding.first)
        is_cut_short = self._is_cut_short or len(findings) > FINDINGS_MAX
        return ChainReport(self._head, self._count, tuple(findings[:FINDINGS_MAX]), is_cut_short)

    def _place(self, stored: StoredEntry, entry: AuditEntry) -> None:
        """Check where the entry stands: its number, and the entry it follows."""
        if (entry.chain, entry.sequence) != (stored.chain, stored.sequence):
            message = f"at its place stands entry {entry.sequence} of chain {entry.chain}"
            self._find(FindingKind.REORDERED, stored.sequence, message)
            self._advance(stored.sequence, "", entry.at_us)  # '' = nothing to hold the next one against
            return
        if stored.sequence <= self._head.sequence:
            self._find(FindingKind.REORDERED, stored.sequence, f"it stands after entry {self._head.sequence}")
            self._fill(stored.sequence)
            return
        follows = stored.sequence == self._head.sequence + 1
        if follows and self._head.digest and entry.previous != self._head.digest:
            was = self._head.sequence
            message = f"entry {stored.sequence} carries another digest of it: one of the two was rewritten"
            self._find(FindingKind.ALTERED, was if was else stored.sequence, message)
        self._advance(stored.sequence, stored.digest, entry.at_us)

    def _advance(self, sequence: int, digest: str, at_us: int) -> None:
        expected = self._head.sequence + 1
        if sequence > expected:
            self._note_gap(expected, sequence - 1)
        elif sequence < expected:
            self._fill(sequence)
            return
        self._head = ChainHead(self._head.chain, sequence, digest, at_us)

    def _note_gap(self, first: int, last: int) -> None:
        if len(self._missing) < FINDINGS_MAX:
            self._missing[first] = last
        else:
            self._is_cut_short = True

    def _fill(self, sequence: int) -> None:
        """An entry that seemed missing has turned up later."""
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
    """What a check found in all chains of a log; `anchor` is to be noted for the next one, '' = no entry."""

    chains: tuple[ChainReport, ...]
    findings: tuple[Finding, ...]
    anchor: str

    @property
    def entries_count(self) -> int:
        """The entries of all chains."""
        return sum(chain.entries_count for chain in self.chains)


class LogVerifier:
    """Checks a log of any number of chains, each by a `ChainVerifier`."""

    def __init__(self, anchors: Iterable[Anchor] = ()) -> None:
        """Check against *anchors*, too: the chains that they name must be there."""
        self._anchors = tuple(anchors)
        self.chains: dict[int, ChainVerifier] = {}
        for chain in (chain for anchor in self._anchors for chain in anchor.places):
            self.chain(chain)

    def chain(self, number: int) -> ChainVerifier:
        """The verifier of chain *number*."""
        if number not in self.chains:
            self.chains[number] = ChainVerifier(number, self._anchors)
        return self.chains[number]

    def report(self) -> LogReport:
        """What was found."""
        reports = tuple(self.chains[chain].report() for chain in sorted(self.chains))
        findings = [finding for report in reports for finding in report.findings]
        for anchor in self._anchors:
            ends = [self.chains[chain].ends[sequence] for chain, sequence in anchor.places.items()]
            there = [end for end in ends if end is not None]  # a missing one has a finding already
            if len(there) == len(ends) > 1 and anchor_of(there) != anchor:
                message = f"an end that anchor {anchor} notes was rewritten, or an entry before it"
                first = there[0]
                findings.append(
                    Finding(FindingKind.ALTERED, first.chain, first.sequence, first.sequence, message)
                )
        anchor_now = anchor_of(report.head for report in reports)
        return LogReport(reports, tuple(findings[:FINDINGS_MAX]), str(anchor_now or ""))


def verify(entries: Iterable[StoredEntry], chain: int = 0, anchors: Iterable[Anchor] = ()) -> ChainReport:
    """
    Check a chain that is at hand as a whole; see `ChainVerifier`.

    >>> verify([]).is_intact
    True
    """
    verifier = ChainVerifier(chain, anchors)
    for stored in entries:
        verifier.add(stored)
    return verifier.report()


def parse_anchor(text: str) -> Anchor:
    """
    Read '<chain>:<sequence>:<digest>', with further '<chain>:<sequence>' after commas, as it is printed.

    Raises:
        AuditFormatError: anything else.
    """
    match = _ANCHOR.fullmatch(text)
    if match is None:
        raise AuditFormatError(
            f"an anchor is '<chain>:<sequence>[,<chain>:<sequence>...]:<64 hex digits>', not {text[:100]!a}"
        )
    pairs = [place.split(":") for place in match[1].split(",")]
    return Anchor({int(chain): int(sequence) for chain, sequence in pairs}, match[2])


_ANCHOR = re.compile(r"([0-9]{1,16}:[0-9]{1,16}(?:,[0-9]{1,16}:[0-9]{1,16}){0,255}):([0-9a-f]{64})")
