"""Documents, pins and make targets agree with each other and with the code."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import pytest

from tests.house.source import ROOT, project_files, report, text_of

PACKAGE_HOSTS = re.compile(r"pypi[.]org|pythonhosted[.]org|deb[.]debian[.]org|archive[.]ubuntu[.]com")
MACHINE_PATHS = re.compile(r"(?<![\w.])/(root|work|home)/[a-z.]")
CODE_SPAN = re.compile(r"`([^`\n]+)`")
MAKE_WORD = re.compile(r"^(?:\$ )?(?:[A-Z]+=\S+ )*make ([a-z][a-z0-9-]*)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
TARGET = re.compile(r"^([a-z][a-z0-9-]*):.*## ", re.MULTILINE)


def documents() -> Iterator[str]:
    """Every Markdown file of the project."""
    return (path for path in project_files() if path.endswith(".md"))


def commands_of(markdown: str) -> Iterator[str]:
    """Every line of a fenced block and every code span of *markdown*."""
    for index, part in enumerate(re.split(r"^```.*$", markdown, flags=re.MULTILINE)):
        yield from (line.strip() for line in part.splitlines()) if index % 2 else CODE_SPAN.findall(part)


def test_changelog__has_the_version() -> None:
    """The changelog's newest entry is the version of the package."""
    version = tomllib.loads(text_of("pyproject.toml"))["project"]["version"]
    entries = re.findall(r"^## \[([^\]]+)\]", text_of("CHANGELOG.md"), re.MULTILINE)
    assert next(entry for entry in entries if entry != "Unreleased") == version


def test_makefile__documented_targets_exist() -> None:
    """Each `make` command that a document names is listed by `make help`."""
    targets = set(TARGET.findall(text_of("Makefile")))
    report(
        [
            f"{path}: `make {match.group(1)}` is not a target that `make help` lists"
            for path in documents()
            for command in commands_of(text_of(path))
            if (match := MAKE_WORD.match(command)) and match.group(1) not in targets
        ]
    )


def test_makefile__each_folder_of_tests_has_its_target() -> None:
    """`make test-NAME` runs tests/NAME, for every NAME, and for no other."""
    folders = {path.split("/")[1] for path in project_files() if re.fullmatch(r"tests/.+/test_\w+\.py", path)}
    targets = {target for target in TARGET.findall(text_of("Makefile")) if target.startswith("test-")}
    assert targets - {"test-compiled"} == {f"test-{folder}" for folder in folders}


def test_ci__runs_the_test_command_of_the_readme() -> None:
    """The commands for newcomers are those that continuous integration runs."""
    assert text_of(".ci/run").rstrip().endswith("exec make test")
    assert "make test" in commands_of(text_of("README.md"))


def test_documents__links_lead_somewhere() -> None:
    """Each relative link of a document names a file of the project."""
    report(
        [
            f"{path}: the link to {target} leads nowhere"
            for path in documents()
            for target in LINK.findall(text_of(path))
            if "://" not in target and not (ROOT / path).parent.joinpath(target).exists()
        ]
    )


def test_decision_records__are_indexed() -> None:
    """docs/adr/README.md lists each record once, in order, without a gap."""
    records = [path.removeprefix("docs/adr/") for path in project_files() if re.match(r"docs/adr/\d", path)]
    assert re.findall(r"^\| \[\d{4}\]\((\S+)\) \|", text_of("docs/adr/README.md"), re.MULTILINE) == records
    assert [record[:4] for record in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
    for record in records:
        assert text_of(f"docs/adr/{record}").startswith(f"# {record[:4]}: ")


def test_files__name_no_package_host_and_no_path_of_one_machine() -> None:
    """Packages come from wherever a machine is set up to look, and nobody else has our folders."""
    report(
        [
            f"{path}:{number}: {match.group()}"
            for path in project_files()
            if path != "tests/house/test_project_files.py"
            for number, line in enumerate(text_of(path).splitlines(), 1)
            if (match := PACKAGE_HOSTS.search(line) or MACHINE_PATHS.search(line))
        ]
    )


def _requirements(lock: str) -> dict[str, str]:
    """The pinned version of each package in *lock*; each block must carry a hash."""
    assert "://" not in text_of(lock)
    blocks = re.split(r"\n(?=\S)", text_of(lock).strip())
    assert [block for block in blocks if "--hash=sha256:" not in block] == []
    pins = [re.match(r"([a-z0-9._-]+)(?:\[[a-z,]+\])?==([^\s;]+)", block) for block in blocks]
    return {pin.group(1): pin.group(2) for pin in pins if pin}


def requirement_name(requirement: str) -> str:
    """The normal name of the package that *requirement* asks for."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return re.sub(r"[._-]+", "-", match.group()).lower()


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("requirements.lock", ()),
        ("requirements-dev.lock", ("dev",)),
        ("requirements-bench.lock", ("dev", "bench")),
    ],
)
def test_locks__pin_every_dependency_with_hashes(lock: str, extras: tuple[str, ...]) -> None:
    """Anyone who installs gets what was tested: each dependency of pyproject.toml, and what builds it."""
    project = tomllib.loads(text_of("pyproject.toml"))
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in extras:
        wanted += project["project"]["optional-dependencies"][extra]
    pinned = _requirements(lock)
    assert sorted({requirement_name(requirement) for requirement in wanted} - set(pinned)) == [], (
        "run make lock"
    )
    exact = dict(requirement.split("==") for requirement in wanted if "==" in requirement)
    assert exact == {name: pinned[requirement_name(name)] for name in exact}, "run make lock"


def test_locks__agree_with_each_other() -> None:
    """Tests and benchmarks run on the very versions that users get."""
    runtime, dev, bench = (
        _requirements(f"requirements{kind}.lock").items() for kind in ("", "-dev", "-bench")
    )
    assert runtime <= dev <= bench
