"""docs/reference/metrics.md describes every metric of the table, and no other."""

from __future__ import annotations

import re

from sidecar.observe.metrics import MetricSpec
from sidecar.observe.table import TABLE
from tests.house.source import text_of

PAGE = "docs/reference/metrics.md"
ROW = re.compile(r"\| `(sidecar_[a-z0-9_]+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|")


def row_head(spec: MetricSpec) -> str:
    """The start of the row that describes *spec*: name, type and labels."""
    labels = ", ".join(f"`{name}`" for name in (*spec.row_labels, *(name for name, _ in spec.labels))) or "-"
    return f"| `{spec.name}` | {spec.kind.value} | {labels} |"


def test_metrics__each_has_its_row() -> None:
    """A new metric comes with a description for the people who will read it."""
    page = text_of(PAGE)
    missing = [f"{row_head(spec)} {spec.help} |" for spec in TABLE.specs if row_head(spec) not in page]
    assert not missing, "\n".join([f"add to {PAGE}, with what a reader should do about it:", *missing])


def test_metrics__no_row_is_left_behind() -> None:
    """A metric that was removed is not on the page, either, and each is there once."""
    documented = [name for name, _, _, meaning in ROW.findall(text_of(PAGE)) if meaning.strip()]
    assert sorted(documented) == sorted(spec.name for spec in TABLE.specs)


def test_metrics__each_label_value_is_explained() -> None:
    """Labels come from closed lists, so the page can explain each value; numbers explain themselves."""
    page = text_of(PAGE)
    values = {(name, value) for spec in TABLE.specs for name, listed in spec.labels for value in listed}
    unexplained = [
        f"- `{name}`: `{value}`"
        for name, value in sorted(values)
        if not value.isdigit() and not re.search(rf"^- [^\n]*`{re.escape(value)}`", page, re.MULTILINE)
    ]
    assert not unexplained, "\n".join([f"explain below 'Label values' in {PAGE}:", *unexplained])
