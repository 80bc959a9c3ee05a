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
"""Entries that are checked per turn of the event loop: about a millisecond."""


@dataclass(frozen=True, slots=True)
class RegistryReport:
    """The findings of a verification: in the log, in the records and in derived data."""

    log: LogReport
    records_count: int
    record_findings: tuple[Finding, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings."""
        return (*self.log.findings, *self.record_findings)

    @property
    def is_intact(self) -> bool:
        """Whether there are no findings."""
        return not self.findings


async def verify_registry(registry: Registry, anchors: Iterable[Anchor] = ()) -> RegistryReport:
    """
    Check every chain of *registry*, also against *anchors*, and every record against its chain.

    Changes made during the verification are left to the next one.
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
    Compares the records of one chain with its entries.

    `sequence` is the head of the chain before the records were read: the records must include every entry
    up to it.
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
        """Compare the next entry."""
        proof = self.proofs.get(entry.subject)
        if proof is not None and proof.sequence == entry.sequence and proof.digest == entry.record_digest:
            self._proven.add(entry.subject)
            if proof.is_deleted != (entry.action == DeleteIntegration.action_name):
                state = "deleted" if proof.is_deleted else "not deleted"
                self._derived.append((proof, f"it is stored as {state}, the log says otherwise"))
            return
        if entry.sequence > self._sequence:
            return
        if proof is None:
            self._find(entry.subject, entry.sequence, "is missing, although the log has its entries")
        elif proof.sequence < entry.sequence:
            self._find(entry.subject, entry.sequence, "was reset to an earlier state")

    def findings(self) -> list[Finding]:
        """The differences, ordered by subject."""
        for subject, proof in self.proofs.items():
            if subject not in self._proven:
                self._find(subject, proof.sequence, "was changed without an audit entry")
        altered = [self._found[subject] for subject in sorted(self._found)]
        derived = [
            DerivedProblem(proof.sequence, f"derived data of {proof.subject}: {problem}")
            for proof, problem in self._derived
        ]
        return altered + [_derived(self._chain, problem) for problem in derived]

    def _find(self, subject: str, sequence: int, what: str) -> None:
        message = f"the record of {subject} {what}: see entry {sequence} of chain {self._chain}"
        finding = Finding(FindingKind.RECORD_ALTERED, self._chain, sequence, sequence, message)
        self._found.setdefault(subject, finding)
