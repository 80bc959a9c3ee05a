"""docs/administer/operations.md works: each command is run in order and shows what the page says."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from sidecar.admin_client.address import parse_server
from sidecar.admin_client.client import AdminClient, path_to
from sidecar.domain.api_keys import credential_id_of
from tests.e2e.shells import Shell
from tests.house.source import text_of
from tests.unit.process.running import Running
from tests.waiting import PATIENCE_S, eventually

PAGE = "docs/administer/operations.md"
PROMPT = re.compile(r"^(ann|bob|audrey)\$ (.*)$")
ACME = path_to("integrations", "acme-erp")

# What differs from run to run, of which the page shows an example: how it looks, and a pattern for all.
_PUBLIC_ID = r"\b(?=[0-9A-Za-z]*[A-Z])(?=[0-9A-Za-z]*[0-9])[0-9A-Za-z]{10}\b"
_VARYING = (
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\dZ",) * 2,
    (r"\b\d+ ms\b",) * 2,
    (r"\b\d+ left\b",) * 2,
    (r"\b[0-9a-f]{64}\b",) * 2,
    (r"\b[0-9a-z]{10}\d{12}\b", r"[0-9a-z]{22}"),  # a decision
    (_PUBLIC_ID, r"[0-9A-Za-z]{10}"),
)
_EXAMPLE = re.compile("|".join(f"({example})" for example, _ in _VARYING))


class Step(NamedTuple):
    """One command of the page, whose it is, and what it shows."""

    person: str
    command: str
    shown: str


def blocks(language: str) -> list[str]:
    """The fenced blocks of the page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(PAGE), re.MULTILINE | re.DOTALL)


def steps() -> Iterator[Step]:
    """Every command of the page, in its order."""
    for block in blocks("console"):
        lines = block.splitlines()
        assert PROMPT.match(lines[0]), f"a block begins with a command: {lines[0]}"
        starts = [number for number, line in enumerate(lines) if PROMPT.match(line)]
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            found = PROMPT.match(lines[start])
            assert found
            yield Step(found[1], found[2], "\n".join(lines[start + 1 : end]))


class Examples:
    """Compares what the page shows with what is shown; the same id on the page is the same id everywhere."""

    def __init__(self) -> None:
        """Know no id yet."""
        self._ids: dict[str, str] = {}

    def hold(self, example: str, shown: str) -> bool:
        """Whether *shown* is what *example* is an example of."""
        pattern, new = "", []
        end = 0
        text = even(example)
        for found in _EXAMPLE.finditer(text):
            pattern += re.escape(text[end : found.start()])
            end = found.end()
            kind = _VARYING[found.lastindex - 1][1] if found.lastindex else ""
            is_id = found.lastindex == len(_VARYING)
            if is_id and found[0] in self._ids:
                pattern += re.escape(self._ids[found[0]])
            elif is_id and found[0] in new:
                pattern += rf"\{new.index(found[0]) + 1}"
            elif is_id:
                new.append(found[0])
                pattern += f"({kind})"
            else:
                pattern += kind
        match = re.fullmatch(pattern + re.escape(text[end:]), even(shown))
        if match:
            self._ids.update(zip(new, match.groups(), strict=True))
        return match is not None


def even(shown: str) -> str:
    """*shown* without what only lays it out: rules, line ends, and more than one space."""
    lines = [line for line in shown.splitlines() if not re.fullmatch(r"\s*─+\s*", line)]
    return " ".join(" ".join(lines).split())


class OperatedSidecar:
    """A sidecar with a SQLite registry on free ports, and a shell for each person."""

    def __init__(self, folder: Path) -> None:
        """Start it with the configuration of the page."""
        self.folder = folder
        (config,) = blocks("yaml")
        listen = {"grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"}
        file = folder / "sidecar.yaml"
        settings = yaml.safe_load(config)
        settings["decision_log"] = {"path": settings["decision_log"], "flush_interval_s": 0.2}
        file.write_text(yaml.safe_dump({**settings, "listen": listen}))
        self.sidecar = Running(folder, "--config", str(file))
        self._grpc, self._admin = self.sidecar.event("serving")["grpc"][0], self.sidecar.admin()
        self._shells: dict[str, Shell] = {}

    def close(self) -> None:
        """End everything."""
        for shell in self._shells.values():
            shell.close()
        self.sidecar.stop()

    def run(self, person: str, command: str) -> tuple[str, int]:
        """Run *command* in the shell of *person*; the default addresses are those of this sidecar."""
        if person not in self._shells:
            self._shells[person] = Shell(self.folder, SIDECAR_SERVER=f"http://{self._admin}")
        return self._shells[person].run(command.replace("127.0.0.1:9191", self._grpc))

    def wait_for_a_use(self) -> None:
        """Wait until it is written when a key of the integration was last used."""
        self._wait(
            lambda acme: any(key["last_used_at"] for key in acme["credentials"]), "the last use is written"
        )

    def wait_for_a_refusal(self) -> None:
        """Wait until it is written whom the allowlist refused, also in the decision log."""
        self._wait(lambda acme: bool(acme["refused_callers"]), "the refused caller is written")
        log = path_to("integrations", "acme-erp", "refused-addresses")
        self._wait(lambda refused: bool(refused["items"]), "the refusal is in the decision log", log)

    def _wait(self, is_written: Callable[[dict[str, Any]], bool], what: str, path: str = ACME) -> None:
        """Wait until the API answers for *path* as it is to be."""
        token, _ = self.run("ann", 'echo "$SIDECAR_ADMIN_TOKEN"')
        with AdminClient(parse_server(self._admin), token, timeout_s=PATIENCE_S) as client:
            eventually(lambda: is_written(client.get(path)), what=what)


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[OperatedSidecar]:
    """Everything that the page needs."""
    running = OperatedSidecar(tmp_path)
    yield running
    running.close()


def test_operations__every_command_does_what_the_page_shows(sidecar: OperatedSidecar) -> None:
    """
    The incident and the review, from the first token on: each command shows what the page says it does.

    A command fails only where the page shows a refusal; nothing on the page is left out.
    """
    examples = Examples()
    for step in steps():
        if step.command in ("sidecar credentials list acme-erp", "sidecar review --flagged"):
            sidecar.wait_for_a_use()
        if step.command == "sidecar allowlist show acme-erp":
            sidecar.wait_for_a_refusal()
        printed, code = sidecar.run(step.person, step.command)
        assert examples.hold(step.shown, printed), f"{step.person}$ {step.command}\n{printed}"
        assert (code == 0) == (not step.shown.startswith("sidecar: ")), step.command
    _check_files(sidecar.folder)


def _check_files(folder: Path) -> None:
    """The files that the page keeps are what it says they are."""
    key = (folder / "acme.key").read_text().strip()
    before = list(csv.DictReader(io.StringIO((folder / "review-2026-Q4.csv").read_text())))
    after = list(csv.DictReader(io.StringIO((folder / "review-2026-Q4-done.csv").read_text())))
    assert {row["integration"] for row in before} == {"acme-erp", "old-import"}
    assert [(row["integration"], row["credential"]) for row in after] == [("acme-erp", credential_id_of(key))]
    accounts = json.loads((folder / "administrators-2026-Q4.json").read_text())["items"]
    assert {account["id"]: account["role"] for account in accounts} == {
        "ann": "admin",
        "bob": "admin",
        "audrey": "auditor",
    }
    assert (folder / "INC-412.anchor").read_text().startswith("anchor 0:")


@pytest.mark.parametrize(
    ("shown", "is_held"),
    [
        ("x: issued Bb22222222 for Bb22222222 after 12 ms", True),
        ("x:  issued bbbbbbbbbb for bbbbbbbbbb\nafter 1 ms", True),
        ("x: issued Bb22222222 for Cc33333333 after 12 ms", False),
        ("x: issued Bb22222222 for Bb22222222 after 12 s", False),
        ("y: issued Bb22222222 for Bb22222222 after 12 ms", False),
    ],
)
def test_operations__an_example_stands_for_one_thing(shown: str, is_held: bool) -> None:
    """The comparison itself: other ids pass, but one for one; all else must be unchanged."""
    examples = Examples()
    assert examples.hold("x: issued Aa11111111 for Aa11111111 after 3 ms", shown) is is_held
    if is_held:
        assert not examples.hold("Aa11111111", "Zz99999999")


def test_operations__the_page_is_read_whole() -> None:
    """Every line with a prompt is a step, and both procedures are among them."""
    found = list(steps())
    prompts = [line for line in text_of(PAGE).splitlines() if re.match(r"^\w+\$ ", line)]
    assert [f"{step.person}$ {step.command}" for step in found] == prompts
    words = {" ".join(step.command.split()[:2]) for step in found}
    assert {"sidecar suspend", "sidecar reactivate", "sidecar review", "sidecar audit"} <= words
