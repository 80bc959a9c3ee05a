"""What a verification of audit chains found, as the admin API and the command line tell it."""

from __future__ import annotations

from typing_extensions import TypedDict

from sidecar.domain.audit import ChainReport, Finding


class ChainView(TypedDict):
    """One chain that was verified; `anchor` is what to note and to give back the next time."""

    chain: int
    entries: int
    anchor: str


class FindingView(TypedDict):
    """One thing that is wrong: entries `sequence` ... `last_sequence` of `chain`."""

    chain: int
    sequence: int
    last_sequence: int
    kind: str
    problem: str


def chain_view(report: ChainReport) -> ChainView:
    """A chain that was verified, with its anchor."""
    head = report.head
    return {
        "chain": head.chain,
        "entries": report.entries_count,
        "anchor": f"{head.chain}:{head.sequence}:{head.digest}",
    }


def finding_view(finding: Finding) -> FindingView:
    """One thing that is wrong, and where."""
    return {
        "chain": finding.chain,
        "sequence": finding.first,
        "last_sequence": finding.last,
        "kind": finding.kind.value,
        "problem": finding.message,
    }
