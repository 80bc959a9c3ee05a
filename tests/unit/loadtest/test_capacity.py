"""The capacity plan: its arithmetic, and that docs/operate/scaling.md shows what it gives."""

from __future__ import annotations

import re

import pytest

from loadtest.capacity import IN_FLIGHT, Costs, Plan, main, plan, row
from sidecar.stores.redis.limits import StoreLimits
from tests.house.source import text_of

PAGE = "docs/operate/scaling.md"


def test_plan__one_worker_and_one_primary_at_least() -> None:
    """A lone decision needs both."""
    assert plan(1, Costs()) == Plan(cells=1, workers=1, primaries=1)


def test_plan__the_worked_example() -> None:
    """A quarter of a million, as the page works it out by hand."""
    assert plan(250_000, Costs()) == Plan(cells=1, workers=13, primaries=2)


@pytest.mark.parametrize("rate_per_s", [10**power for power in range(3, 9)])
def test_plan__keeps_every_share_that_it_promises(rate_per_s: int) -> None:
    """Whatever the rate: workers, calls and entries of a cell stay within their shares of a core."""
    costs = Costs()
    found = plan(rate_per_s, costs)
    rate_of_cell = rate_per_s / found.cells
    calls_use = IN_FLIGHT * found.workers * costs.call_us / costs.trip_us
    entries_use = rate_of_cell / found.primaries * costs.entry_us / 1e6
    assert rate_of_cell * costs.sidecar_us / 1e6 <= costs.worker_use * found.workers + 1e-9
    assert calls_use <= costs.calls_use
    assert calls_use + entries_use <= costs.redis_use + 1e-9


def test_plan__one_bucket_needs_one_primary() -> None:
    """Equal takes share an entry, so a hot bucket is limited by calls alone."""
    assert plan(1_000_000, Costs(), merged=1.0).primaries == 1


def test_plan__dear_calls_make_every_worker_a_cell() -> None:
    """Where two workers would take more than their share of a primary, none shares one."""
    found = plan(100_000, Costs(call_us=5_000, trip_us=20_000))
    assert (found.cells, found.workers) == (6, 1)


def test_plan__calls_that_fill_a_primary_are_refused() -> None:
    """No number of primaries helps then, so no plan is better than a wrong one."""
    with pytest.raises(ValueError, match="calls of 5000 µs saturate a primary at trips of 10000 µs"):
        plan(1_000, Costs(call_us=5_000, trip_us=10_000))


def test_plan__calls_in_flight_are_those_of_the_store() -> None:
    """The formula's 2 is the store's bound."""
    assert StoreLimits().in_flight_max == IN_FLIGHT


def test_page__shows_what_the_formula_gives() -> None:
    """Every row of the page's plans is the program's own."""
    plans = text_of(PAGE).split("## Plans")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([\d,]+) \|.*$", plans, re.MULTILINE)
    assert len(rows) >= 5
    assert [line for line in plans.splitlines() if re.match(r"\| \d", line)] == [
        row(int(rate.replace(",", "")), Costs()) for rate in rows
    ]


def test_command__reckons_with_other_costs(capsys: pytest.CaptureFixture[str]) -> None:
    """Each cost has an option."""
    main(["1000000", "--sidecar-us", "310"])
    assert capsys.readouterr().out == row(1_000_000, Costs(sidecar_us=310)) + "\n"
