"""Which integration somebody may have meant by an id that does not exist."""

from __future__ import annotations

from dataclasses import replace

from sidecar.domain.refusals import Code
from sidecar.domain.suggestions import closest
from sidecar.services.admin.problems import Problem
from sidecar.stores.registry.protocol import ListQuery, Registry, RegistryError

PART_CHARS_MIN = 2
CANDIDATES_MAX = 200
"""Ids that are compared for each part of what was asked for."""


async def closest_integration(registry: Registry, wanted: str) -> str:
    """
    The id most like *wanted*, '' = none is like it, or the registry cannot tell.

    Looked for among those that share a third of it, so that a slip in the two other thirds does no harm,
    and a registry of any size is asked for few records.
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
    """*problem*, with the integration that may be meant where it says that *wanted* does not exist."""
    if problem.code != Code.INTEGRATION_UNKNOWN.word or not wanted:
        return problem
    meant = await closest_integration(registry, wanted[:64])
    if not meant:
        return problem
    faults = tuple(
        replace(fault, message=f"{fault.message}; did you mean {meant!r}?") for fault in problem.faults
    )
    detail = "\n".join(f"{fault.message} {fault.remedy}" for fault in faults)
    return replace(problem, detail=detail, faults=faults)
