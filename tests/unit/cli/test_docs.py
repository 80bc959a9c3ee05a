"""The references in docs/ say what the program does."""

from __future__ import annotations

import re

from sidecar.cli import exits
from sidecar.domain.scopes import DEFAULT_CATEGORIES
from sidecar.process.config import load_config
from sidecar.process.config_source import settings_of
from sidecar.process.settings import LISTEN_KINDS, Settings
from sidecar.stores.registry.file.registry_records import CREDENTIAL_KEYS, INTEGRATION_KEYS
from tests.house.source import ROOT, report, text_of

from .help_text import SHARED, block_of, helps, panel_of, shared_block
from .reference import Row, rows

PAGE = "docs/reference/configuration.md"
SAME_AS_GRPC = tuple(f"listen.{kind}[]" for kind in LISTEN_KINDS if kind != "grpc")
"""Their keys are those of listen.grpc[], says the page."""


def line_of(row: Row) -> str:
    """The start of the line that describes a setting."""
    default = row.default if row.default in ("-", "required") else f"`{row.default}`"
    columns = [f"`{row.key}`", *([f"`{row.variable}`"] if row.variable else []), default, row.values]
    return f"| {' | '.join(columns)} | "


def test_configuration_page__describes_every_setting() -> None:
    """Key, variable, default and range of each are those of the model, and each has a meaning."""
    page = text_of(PAGE).splitlines()
    wrong = []
    for row in rows():
        if row.key.startswith(SAME_AS_GRPC):
            continue
        found = [line for line in page if line.startswith(line_of(row))]
        if len(found) != 1 or len(found[0]) < len(line_of(row)) + 10:
            wrong.append(line_of(row))
    assert not wrong, "\n".join([f"{PAGE} must have, with a meaning:", *wrong])


def test_configuration_page__describes_nothing_else() -> None:
    """A key that was removed is not on the page, either."""
    tables = text_of(PAGE).split("## How the upstream reads paths")[0]
    documented = re.findall(r"^\| `([a-z_.\[\]]+)` \|", tables, re.MULTILINE)
    assert sorted(documented) == sorted(row.key for row in rows() if not row.key.startswith(SAME_AS_GRPC))


def test_configuration_page__lists_the_categories() -> None:
    """The fifteen categories are as they are."""
    wanted = [
        f"| `{category.name}` | {category.title} | {category.sensitivity.value}"
        f" | read{'' if category.read_only else ', write'} |"
        for category in DEFAULT_CATEGORIES
    ]
    page = text_of(PAGE)
    assert len(wanted) == 15
    assert [line for line in wanted if line not in page] == []


def test_configuration_page__describes_the_registry() -> None:
    """Each key of the registry file has its row."""
    page = text_of(PAGE).split("## The registry file")[1]
    keys = [*INTEGRATION_KEYS, *(f"credentials[].{key}" for key in CREDENTIAL_KEYS)]
    assert [key for key in keys if f"| `{key}` |" not in page] == []


def test_cli_page__shows_the_help_of_every_command() -> None:
    """What `--help` prints is on the page, letter by letter, below a heading, and nothing else."""
    page = text_of("docs/reference/cli.md")
    report(
        [
            f"docs/reference/cli.md must show `sidecar {command}`: run python -m tests.unit.cli.help_text"
            for command in helps()
            if block_of(command) not in page or (command and f" sidecar {command}\n" not in page)
        ]
    )
    shown = re.findall(r"^\$ sidecar ?(.*?) ?--help$", page, re.MULTILINE)
    assert sorted(shown) == sorted(helps())


def test_cli_page__explains_every_exit_code() -> None:
    """Each code that a command can end with has its row, and no row is of a code that was removed."""
    codes = {value for name, value in vars(exits).items() if name.startswith("EXIT_")}
    rows_of_codes = re.findall(r"^\| (\d+) \| .{10,} \|$", text_of("docs/reference/cli.md"), re.MULTILINE)
    assert [int(code) for code in rows_of_codes] == sorted(codes)


def test_cli_page__shows_the_options_that_many_commands_have() -> None:
    """Each group occurs once, as commands print it; commands with other options of that name show theirs."""
    page = text_of("docs/reference/cli.md")
    assert [title for title in SHARED if shared_block(title) not in page] == []
    of_accounts = panel_of(helps()["admin create"], "Change")
    assert "--idempotency-key" in of_accounts
    assert of_accounts in page


def test_example__sets_only_what_exists() -> None:
    """The example shows every key without a separate section, but for a few that are rarely set."""
    config = load_config(ROOT / "deploy" / "example" / "sidecar.yaml", {})
    shown = {path[0] for path in config.tree.origins}
    known = {path[0] for path, _ in settings_of(Settings)}
    assert shown <= known
    assert {"listen", "registry", "client_ip", "credentials", "routes", "log", "drain_timeout_s"} <= shown
