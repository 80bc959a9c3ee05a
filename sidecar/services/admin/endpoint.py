"""Describes an endpoint: a row of the table that routes, OpenAPI document, documentation and tests share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pydantic import BaseModel
from starlette.responses import Response

from sidecar.domain.roles import Action, Actor, Role
from sidecar.services.admin.bodies import Query
from sidecar.services.admin.call import BODY_BYTES_MAX, Call
from sidecar.services.admin.context import AdminContext

Handle: TypeAlias = Callable[[AdminContext, Call, Any, Any], Awaitable[Response]]
"""Answers a call; receives the query string and the body as the endpoint's models."""

READ_PROBLEMS = (400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 504)
CHANGE_PROBLEMS = (400, 401, 403, 404, 408, 409, 412, 413, 415, 422, 429, 500, 503, 504)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    One method of one path.

    `actions`: the role must permit one of these; empty = any valid token. `tag` is the label in the
    documentation and in metrics. `answer` is the type of the JSON answer; None = `contents` has the schema of
    each media type.
    """

    name: str
    method: str
    path: str
    tag: str
    summary: str
    description: str
    handle: Handle
    actions: frozenset[Action] = frozenset()
    query: type[Query] = Query
    body: type[BaseModel] | None = None
    answer: Any = None
    contents: Mapping[str, dict[str, object]] = field(default_factory=dict)
    status: int = 200
    has_generation: bool = False
    """Accepts If-Match."""
    examples: tuple[dict[str, object], ...] = field(default=())
    body_bytes_max: int = BODY_BYTES_MAX

    @property
    def is_change(self) -> bool:
        """Whether it changes anything."""
        return self.method != "GET"

    @property
    def problems(self) -> tuple[int, ...]:
        """The statuses of its error answers."""
        statuses = CHANGE_PROBLEMS if self.is_change else READ_PROBLEMS
        return tuple(sorted((*statuses, 406))) if self.is_negotiated else statuses

    @property
    def is_negotiated(self) -> bool:
        """Whether the header `Accept` chooses the media type of the answer."""
        return len(self.contents) > 1

    def admits(self, role: Role) -> bool:
        """Whether *role* may call it."""
        probe = Actor("somebody", role, "")
        return not self.actions or any(probe.may(action) for action in self.actions)

    def require(self, actor: Actor) -> None:
        """
        Refuse an actor whose role permits none of the actions.

        Raises:
            ForbiddenError: role_forbids.
        """
        if not self.admits(actor.role):
            actor.require(min(self.actions, key=lambda action: action.value))
