"""The tables and the diagram of docs/administer/lifecycle.md, made from the state machine itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sidecar.domain.lifecycle import commands as c
from sidecar.domain.lifecycle.outcome import Facts
from sidecar.domain.lifecycle.states import DESCRIPTIONS, TRANSITIONS, State
from sidecar.domain.refusals import RefusedError
from sidecar.domain.roles import PERMISSIONS, Role
from tests.administration import BOB, apply, examples, in_state
from tests.house.source import ROOT

PAGE = ROOT / "docs" / "administer" / "lifecycle.md"

DRAWN = (
    c.CreateIntegration,
    c.Suspend,
    c.IssueCredential,
    c.RevokeCredential,
    c.Reactivate,
    c.DeleteIntegration,
)
"""The commands that lead from one state to another: the arrows of the diagram."""


def diagram() -> str:
    """Every arrow between two states, and a suspension that is repeated, as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> absent"]
    for kind in DRAWN:
        for state, following in TRANSITIONS[kind].items():
            lines += [
                f"    {state.value} --> {after.value}: {kind.action_name}"
                for after in following
                if after is not state or kind is c.Suspend
            ]
    ending = f"    {State.REISSUED.value} --> {State.SUSPENDED.value}: the last new credential expires"
    return "\n".join(["```mermaid", *lines, ending, "    deleted --> [*]", "```"])


def states() -> str:
    """What each state means."""
    rows = [f"| `{state.value}` | {DESCRIPTIONS[state]} |" for state in State]
    return "\n".join(["| state | meaning |", "|---|---|", *rows])


def commands() -> str:
    """Command by command and state by state: what follows, or the code of the refusal."""
    head = f"| command | {' | '.join(state.value for state in State)} | roles |"
    rows = [f"| `{kind.action_name}` | {' | '.join(_cells(kind))} | {_roles(kind)} |" for kind in c.COMMANDS]
    return "\n".join([head, "|---|" + "---|" * (len(State) + 1), *rows])


def refusal_in(kind: type[c.Command], state: State) -> str:
    """
    The code with which the machine refuses a command in *state*.

    Raises:
        AssertionError: it does not.
    """
    record, is_deleted = in_state(state)
    try:
        apply(record, examples()[kind], BOB, facts=Facts(is_deleted=is_deleted))
    except RefusedError as error:
        return error.code.text
    raise AssertionError(f"{kind.action_name} is accepted in the state {state.value}")


def parts() -> dict[str, str]:
    """Each generated part of the page, by the name in its markers."""
    return {"diagram": diagram(), "states": states(), "commands": commands()}


def marked(name: str, text: str) -> str:
    """*text* between the markers of the part *name*."""
    return f"<!-- {name} -->\n\n{text}\n\n<!-- end of {name} -->"


def refresh(page: str) -> str:
    """*page* with each part as it is now."""
    for name, text in parts().items():
        pattern = rf"<!-- {name} -->.*?<!-- end of {name} -->"
        page = re.sub(pattern, marked(name, text).replace("\\", r"\\"), page, flags=re.DOTALL)
    return page


def _cells(kind: type[c.Command]) -> Iterator[str]:
    for state in State:
        following = TRANSITIONS[kind].get(state)
        if following is None:
            yield f"refused: `{refusal_in(kind, state)}`"
        else:
            yield " or ".join(
                f"**{after.value}**" if after is not state else after.value for after in following
            )


def _roles(kind: type[c.Command]) -> str:
    return ", ".join(role.value for role in Role if kind.action in PERMISSIONS[role])


if __name__ == "__main__":  # python -m tests.unit.domain.lifecycle_text
    PAGE.write_text(refresh(PAGE.read_text()))
