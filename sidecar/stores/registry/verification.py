"""Verification of a whole registry: every chain, and every record against its latest audit entry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

from sidecar.domain.audit import (
    FINDINGS_MAX,
    Anchor,
    AuditEntry,
    Finding,
    FindingKind,
    LogReport,
    LogVerifier,
    StoredEntry,
)
from sidecar.domain.lifecycle.commands import DeleteIntegration
from sidecar.stores.registry.derived import DerivedProblem
from sidecar.stores.registry.protocol import AuditQuery, RecordProof, Registry

ENTRIES_PER_TURN = 50
"""Entries that are checked before the event loop gets its turn: about a millisecond."""


@dataclass(frozen=True, slots=True)
class RegistryReport:
    """What a verification found: in the log, and in the records beside it."""

    log: LogReport
    records_count: int
    record_findings: tuple[Finding, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of them."""
        return (*self.log.findings, *self.record_findings)

    @property
    def is_intact(self) -> bool:
        """True when nothing was found."""
        return not self.findings


async def verify_registry(registry: Registry, anchors: Iterable[Anchor] = ()) -> RegistryReport:
    """
    Check every chain of *registry*, against *anchors* too, and every record against its chain.

    The registry may change meanwhile; what is newer than the start is left for the next verification.
    """
    log = LogVerifier(anchors)
    findings: list[Finding] = []
    records_count = 0
    for chain in await registry.chains():
        records = await _RecordCheck.begin(registry, chain)
        verifier = log.chain(chain)
        problems: list[DerivedProblem] = []
        async for page in _pages(registry, chain):
            entries = [entry for stored in page if (entry := verifier.add(stored)) is not None]
            for entry in entries:
                records.add(entry)
            if len(problems) < FINDINGS_MAX:
                problems += await registry.entry_problems(chain, entries)
        problems += await registry.chain_problems(chain)
        findings += records.findings()
        findings += (_derived(chain, problem) for problem in problems)
        records_count += len(records.proofs)
    return RegistryReport(log.report(), records_count, tuple(findings[:FINDINGS_MAX]))


def _derived(chain: int, problem: DerivedProblem) -> Finding:
    where = f": see entry {problem.sequence} of chain {chain}" if problem.sequence else f" (chain {chain})"
    kind = FindingKind.DERIVED_ALTERED
    return Finding(kind, chain, problem.sequence, problem.sequence, f"{problem.message}{where}")


async def _pages(registry: Registry, chain: int) -> AsyncIterator[Sequence[StoredEntry]]:
    after = ""
    while True:
        page = await registry.audit(AuditQuery(chain=chain, after=after, limit=ENTRIES_PER_TURN))
        yield page.entries
        after = page.next_after
        if not after:
            return


class _RecordCheck:
    """
    Compares the records of one chain with the entries that pass by.

    `sequence` is where the chain was before the records were read: what an entry up to there says, the
    records must show.
    """

    def __init__(self, chain: int, sequence: int, proofs: Iterable[RecordProof]) -> None:
        self.proofs = {proof.subject: proof for proof in proofs}
        self._chain = chain
        self._sequence = sequence
        self._proven: set[str] = set()
        self._found: dict[str, Finding] = {}
        self._derived = [(proof, problem) for proof in self.proofs.values() for problem in proof.problems]

    @classmethod
    async def begin(cls, registry: Registry, chain: int) -> _RecordCheck:
        revision = await registry.revision()
        proofs: list[RecordProof] = []
        while page := await registry.record_proofs(chain, proofs[-1].subject if proofs else ""):
            proofs += page
        return cls(chain, revision.sequences[chain], proofs)

    def add(self, entry: AuditEntry) -> None:
        """Take the next entry."""
        proof = self.proofs.get(entry.subject)
        if proof is not None and proof.sequence == entry.sequence and proof.digest == entry.record_digest:
            self._proven.add(entry.subject)
            if proof.is_deleted != (entry.action == DeleteIntegration.word):
                state = "deleted" if proof.is_deleted else "not deleted"
                self._derived.append((proof, f"it is kept as {state}, the log says otherwise"))
            return
        if entry.sequence > self._sequence:
            return
        if proof is None:
            self._find(entry.subject, entry.sequence, "is gone, though its trail is there")
        elif proof.sequence < entry.sequence:
            self._find(entry.subject, entry.sequence, "was put back to an earlier state")

    def findings(self) -> list[Finding]:
        """What does not match, in order of the subjects."""
        for subject, proof in self.proofs.items():
            if subject not in self._proven:
                self._find(subject, proof.sequence, "was changed around the audit log")
        altered = [self._found[subject] for subject in sorted(self._found)]
        beside = [
            DerivedProblem(proof.sequence, f"beside the record of {proof.subject}: {problem}")
            for proof, problem in self._derived
        ]
        return altered + [_derived(self._chain, problem) for problem in beside]

    def _find(self, subject: str, sequence: int, what: str) -> None:
        message = f"the record of {subject} {what}: see entry {sequence} of chain {self._chain}"
        finding = Finding(FindingKind.RECORD_ALTERED, self._chain, sequence, sequence, message)
        self._found.setdefault(subject, finding)
