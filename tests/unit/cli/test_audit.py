"""`sidecar audit`: reading, exporting, and finding what was altered, removed or moved, also offline."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.cli import audit_file as module
from sidecar.cli.audit_file import AuditFileError, verify_file
from sidecar.cli.exits import CommandError
from sidecar.cli.new_file import new_file

from .served import ServedApi

Lines = list[str]


@pytest.fixture
def export(api: ServedApi, tmp_path: Path) -> Path:
    """An export of nine entries."""
    for id in ("one", "two"):
        api.output("integrations", "create", id)
    api.output("suspend", "one", "--reason", "leak")
    for rpm in ("100", "200"):
        api.output("limit", "set", "two", rpm)
    file = tmp_path / "audit.ndjson"
    result = api.run("audit", "export", "--output", str(file))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"{file}: 9 entries\n")
    return file


def verified(api: ServedApi, file: Path, *arguments: str) -> tuple[int, str]:
    """The exit code and the output of a verification that needs no server and no token."""
    result = api.run(
        "audit", "verify", str(file), *arguments, SIDECAR_SERVER="http://127.0.0.1:1", SIDECAR_ADMIN_TOKEN=""
    )
    return result.exit_code, result.stdout


def test_audit_list__newest_first_and_narrowed(api: ServedApi) -> None:
    """What was done, by whom, to what, why and from where; by the words of a suspension in an incident."""
    api.output("integrations", "create", "watched")
    api.output("suspend", "watched", "--reason", "key leaked", who="olli")
    rows = [line.split("\t") for line in api.output("audit", "list", "--integration", "watched").splitlines()]
    assert [row[1:3] for row in rows] == [["olli", "integration.suspend"], ["ann", "integration.create"]]
    assert rows[0][3:7] == [
        "integration:watched", "suspended; 0 live credentials were invalidated", "key leaked", "127.0.0.1"
    ]  # fmt: skip
    assert rows[0][7] == "0:6"
    oldest = api.output("audit", "list", "--oldest-first", "--limit", "1").split("\t")
    assert oldest[2] == "admin.bootstrap"
    one = api.output("audit", "list", "--actor", "olli", "--action", "integration.suspend", "--since", "1h")
    assert len(one.splitlines()) == 1
    assert api.output("audit", "list", "--until", "1h") == ""
    assert len(api.output("audit", "list", "--subject", "administrator:bob").splitlines()) == 1
    entries = json.loads(api.output("audit", "list", "--json"))
    assert entries["chains"] == [0]
    assert entries["items"][0]["reason"] == "key leaked"


def test_audit_verify__by_the_server(api: ServedApi) -> None:
    """It shows how much was checked, and an anchor for the next verification."""
    first = api.output("audit", "verify").splitlines()
    assert first[0] == "4 entries in 1 chain: intact"
    anchor = first[1].removeprefix("anchor ")
    api.output("integrations", "create", "more")
    assert api.run("audit", "verify", "--anchor", anchor).exit_code == 0
    wrong = anchor[:-1] + ("0" if anchor[-1] != "0" else "1")
    found = api.run("audit", "verify", "--anchor", anchor, "--anchor", wrong)
    assert found.exit_code == 1
    assert "altered: entry 4 of chain 0: its digest differs from the recorded one" in found.stdout
    assert "NOT intact: 1 finding" in found.stdout
    assert "anchor" not in found.stdout
    malformed = api.run("audit", "verify", "--anchor", "nonsense")
    assert (malformed.exit_code, "anchor is" in malformed.stderr) == (1, True)


def test_audit_export__of_one_integration(api: ServedApi, export: Path, tmp_path: Path) -> None:
    """Only its entries, each as it was hashed; what has gaps is not passed off as a whole log."""
    whole = export.read_text().splitlines()
    ids = {json.loads(json.loads(line)["text"])["subject"] for line in whole}
    (subject, *_) = sorted(name for name in ids if name.startswith("integration:"))
    file = tmp_path / "one.ndjson"
    result = api.run("audit", "export", "--integration", subject.partition(":")[2], "--output", str(file))
    assert result.exit_code == 0
    wanted = [line for line in whole if json.loads(json.loads(line)["text"])["subject"] == subject]
    assert file.read_text().splitlines() == wanted
    assert verified(api, file)[0] == 1
    assert api.output("audit", "export", "--integration", "nobody") == ""


def test_audit_export__is_what_was_hashed(api: ServedApi, export: Path) -> None:
    """A whole file that only its owner can read, and that says offline what the server says."""
    assert stat.S_IMODE(export.stat().st_mode) == 0o600
    assert export.read_text() == api.output("audit", "export")
    assert verified(api, export) == (0, api.output("audit", "verify"))
    by_server = json.loads(api.output("audit", "verify", "--json"))
    by_server.pop("records")  # a file has none
    assert json.loads(verified(api, export, "--json")[1]) == by_server


def _altered(lines: Lines) -> Lines:
    return [line.replace("leak", "lack") for line in lines]


def _removed(lines: Lines) -> Lines:
    return [*lines[:4], *lines[6:]]


def _moved(lines: Lines) -> Lines:
    return [*lines[:2], lines[3], lines[2], *lines[4:]]


@pytest.mark.parametrize(
    ("spoil", "reported"),
    [
        (_altered, "altered: entry 7 of chain 0: its body does not match its digest"),
        (_removed, "missing: entries 5 to 6 of chain 0: removed from the chain"),
        (_moved, "reordered: entry 3 of chain 0: its position is after entry 4"),
    ],
)
def test_audit_verify__finds_what_was_done_to_an_export(
    api: ServedApi, export: Path, spoil: Callable[[Lines], Lines], reported: str
) -> None:
    """Altered, removed and moved entries are named, with 1, without asking anybody."""
    export.write_text("\n".join(spoil(export.read_text().splitlines())) + "\n")
    code, said = verified(api, export)
    assert code == 1
    assert reported in said
    assert "9 entries in 1 chain: NOT intact" in said or "7 entries in 1 chain: NOT intact" in said


def test_audit_verify__an_anchor_shows_that_the_end_was_cut_off(api: ServedApi, export: Path) -> None:
    """A shortened file is a valid chain: only an anchor stored elsewhere shows it, also a missing chain."""
    anchor = verified(api, export)[1].splitlines()[1].removeprefix("anchor ")
    lines = export.read_text().splitlines()
    export.write_text("\n".join(lines[:-2]) + "\n")
    assert verified(api, export)[0] == 0
    code, said = verified(api, export, "--anchor", anchor)
    assert (code, "missing: entries 8 to 9 of chain 0: the end of the chain was cut off" in said) == (1, True)
    gone = anchor.replace("0:9:", "5:1:", 1)
    assert "missing: entry 1 of chain 5" in verified(api, export, "--anchor", gone)[1]


@pytest.mark.parametrize(
    "line",
    ["not json", "[]", '{"chain": 0}', '{"chain": true, "sequence": 1, "text": "", "digest": ""}',
     '{"chain": 0, "sequence": 0, "text": "", "digest": ""}',
     '{"chain": 0, "sequence": 1, "text": 1, "digest": ""}', "[" * 100_000],
)  # fmt: skip
def test_verify_file__another_file_is_reported_with_its_line(tmp_path: Path, line: str) -> None:
    """What is no export is not verified, and not called altered either."""
    file = tmp_path / "a"
    file.write_text(line + "\n")
    with pytest.raises(AuditFileError, match=r"a:1: not an exported audit entry"):
        verify_file(file)


def test_verify_file__what_cannot_be_read_is_reported(tmp_path: Path) -> None:
    """A file that is not there, or not text."""
    with pytest.raises(AuditFileError, match="cannot be read"):
        verify_file(tmp_path / "no")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(AuditFileError, match="cannot be read"):
        verify_file(tmp_path / "bytes")
    with pytest.raises(AuditFileError, match="anchor is"):
        verify_file(tmp_path / "no", ["nonsense"])


def test_verify_file__chains_and_lines_have_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file made for it cannot fill the memory with chains or with one line."""
    file = tmp_path / "a"
    lines = [json.dumps({"chain": n, "sequence": 1, "text": "", "digest": ""}) for n in range(3)]
    file.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(module, "CHAINS_MAX", 2)
    with pytest.raises(AuditFileError, match="more than 2 chains"):
        verify_file(file)
    monkeypatch.setattr(module, "LINE_CHARS_MAX", 10)
    with pytest.raises(AuditFileError, match="not an exported audit entry"):
        verify_file(file)


def test_audit_export__never_replaces_a_file(api: ServedApi, export: Path) -> None:
    """An export is evidence: a second one under the same name is refused, and the first stays."""
    before = export.read_bytes()
    result = api.run("audit", "export", "--output", str(export))
    assert (result.exit_code, "exists; name another file" in result.stderr) == (1, True)
    assert export.read_bytes() == before
    assert [path.name for path in export.parent.iterdir()] == [export.name]


def test_new_file__is_whole_or_absent(tmp_path: Path) -> None:
    """A block that fails leaves nothing, neither under the name nor beside it."""
    file = tmp_path / "a"
    with pytest.raises(RuntimeError), new_file(file) as draft:
        draft.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CommandError, match="cannot be written"), new_file(tmp_path / "no" / "a"):
        pass
