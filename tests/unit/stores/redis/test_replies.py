"""Error replies: every code has a remedy, what a person must mend says how, and metrics know them all."""

from __future__ import annotations

import pytest

from sidecar.observe.table import STORE_ERROR_CODES, TABLE
from sidecar.stores.protocols import StoreFault
from sidecar.stores.redis.counts import StoreCounts
from sidecar.stores.redis.replies import ErrorReply, Remedy, advice_of, code_of, remedy_of
from tests.building import make_metrics


@pytest.mark.parametrize("code", [code for code in STORE_ERROR_CODES if code != "other"])
def test_replies__every_counted_code_has_a_remedy_of_its_own(code: str) -> None:
    """TELL is the answer to what we do not know: a known code with it says what to do."""
    error = ErrorReply(f"{code} some text")
    assert code_of(error) == code
    if remedy_of(error) is Remedy.LOG:
        assert advice_of(error) != str(error)


def test_replies__an_unknown_error_is_reported_as_it_is() -> None:
    """And counted as other."""
    error = ErrorReply("EXOTIC thing")
    assert (remedy_of(error), advice_of(error)) == (Remedy.LOG, "EXOTIC thing")
    metrics = make_metrics()
    counts = StoreCounts(metrics)
    for code in ("EXOTIC", "", "MOVED"):
        counts.error(code)
    assert metrics.value("sidecar_store_error_replies_total", "other") == 2
    assert metrics.value("sidecar_store_error_replies_total", "MOVED") == 1


def test_replies__an_empty_error_is_an_error() -> None:
    """A server may send '-' alone."""
    assert code_of(ErrorReply("")) == ""


def test_counts__every_fault_is_counted() -> None:
    """The table's closed list is that of the protocol."""
    [spec] = [spec for spec in TABLE.specs if spec.name == "sidecar_store_faults_total"]
    assert dict(spec.labels)["fault"] == tuple(fault.value for fault in StoreFault)
