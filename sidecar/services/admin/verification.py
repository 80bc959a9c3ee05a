"""The report of an audit verification, for the admin API and the command line."""

from __future__ import annotations

from collections.abc import Iterable

from typing_extensions import TypedDict

from sidecar.domain.audit import ChainReport, Finding, LogReport, anchor_of


class ChainView(TypedDict):
    """One verified chain; `anchor` names its end, null = the chain is empty."""

    chain: int
    entries: int
    anchor: str | None


class FindingView(TypedDict):
    """One error in entries `sequence` ... `last_sequence` of `chain`."""

    chain: int
    sequence: int
    last_sequence: int
    kind: str
    problem: str


class LogView(TypedDict):
    """What a verification found; `anchor` is the one to store for the next verification, null = no entry."""

    is_intact: bool
    entries: int
    anchor: str | None
    chains: list[ChainView]
    findings: list[FindingView]


def log_view(log: LogReport, further: Iterable[Finding] = ()) -> LogView:
    """A log that was verified, with *further* findings beside it."""
    findings = [finding_view(finding) for finding in (*log.findings, *further)]
    return {
        "is_intact": not findings,
        "entries": log.entries_count,
        "anchor": log.anchor or None,
        "chains": [chain_view(chain) for chain in log.chains],
        "findings": findings,
    }


def chain_view(report: ChainReport) -> ChainView:
    """Return the view of a verified chain, with its anchor."""
    anchor = anchor_of((report.head,))
    return {
        "chain": report.head.chain,
        "entries": report.entries_count,
        "anchor": str(anchor) if anchor is not None else None,
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
