"""The report of an audit verification, for the admin API and the command line."""

from __future__ import annotations

from typing_extensions import TypedDict

from sidecar.domain.audit import ChainReport, Finding


class ChainView(TypedDict):
    """One verified chain; keep `anchor` for the next verification."""

    chain: int
    entries: int
    anchor: str


class FindingView(TypedDict):
    """One error in entries `sequence` ... `last_sequence` of `chain`."""

    chain: int
    sequence: int
    last_sequence: int
    kind: str
    problem: str


def chain_view(report: ChainReport) -> ChainView:
    """Return the view of a verified chain, with its anchor."""
    head = report.head
    return {
        "chain": head.chain,
        "entries": report.entries_count,
        "anchor": f"{head.chain}:{head.sequence}:{head.digest}",
    }


def finding_view(finding: Finding) -> FindingView:
    """Return the view of one error."""
    return {
        "chain": finding.chain,
        "sequence": finding.first,
        "last_sequence": finding.last,
        "kind": finding.kind.value,
        "problem": finding.message,
    }
