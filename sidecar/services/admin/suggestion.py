"""Suggests an integration for an id that does not exist."""

from __future__ import annotations

from dataclasses import replace

from sidecar.domain.refusals import Code
from sidecar.domain.suggestions import closest
from sidecar.services.admin.problems import Problem
from sidecar.stores.registry.protocol import ListQuery, Registry, RegistryError

PART_CHARS_MIN = 2
CANDIDATES_MAX = 200
"""Ids to compare for each part of the wanted id."""


async def closest_integration(registry: Registry, wanted: str) -> str:
    """
    Return the id most similar to *wanted*; '' = none is similar, or the registry is unavailable.

    Compares only ids that share a third of *wanted*, so that a registry of any size returns few records, and
    mistakes in the other two thirds do not matter.
    """
    size = max(PART_CHARS_MIN, len(wanted) // 3)
    parts = {wanted[:size], wanted[size : 2 * size], wanted[-size:]}
    found: set[str] = set()
    try:
        for part in sorted(part for part in parts if len(part) >= PART_CHARS_MIN):
            page = await registry.list(ListQuery(search=part, limit=CANDIDATES_MAX))
            found.update(record.id for record in page.records)
    except RegistryError:
        return ""
    return closest(wanted, sorted(found))


async def with_suggestion(registry: Registry, problem: Problem, wanted: str) -> Problem:
    """Add a suggestion to *problem* if it says that *wanted* does not exist."""
    if problem.code != Code.INTEGRATION_UNKNOWN.text or not wanted:
        return problem
    meant = await closest_integration(registry, wanted[:64])
    if not meant:
        return problem
    faults = tuple(
        replace(fault, message=f"{fault.message}; did you mean {meant!r}?") for fault in problem.faults
    )
    detail = "\n".join(f"{fault.message} {fault.remedy}" for fault in faults)
    return replace(problem, detail=detail, faults=faults)
