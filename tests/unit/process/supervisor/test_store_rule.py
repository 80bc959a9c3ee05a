"""Workers without a shared store are refused, at both doors."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.process.checking import check
from sidecar.process.config import load_config
from sidecar.process.config_checks import refuse_unshared_store
from sidecar.process.serve import serve
from sidecar.process.settings import Settings
from sidecar.sources.file_faults import FileFaultsError

WARNING = "so every limit would be 3 times as high; set 'workers: 1', or a shared store, such as 'store: redis://HOST'"


def written(folder: Path, workers: object) -> Path:
    """A configuration on the embedded store."""
    file = folder / "sidecar.yaml"
    file.write_text(f"store: 'embedded:'\nworkers: {workers}\n")
    return file


def test_store_rule__serve_refuses_before_anything_is_started(tmp_path: Path) -> None:
    """Three workers with three sets of buckets would admit three times the limit."""
    config = load_config(written(tmp_path, 3), {})
    with pytest.raises(FileFaultsError) as raised:
        serve(config)
    (fault,) = raised.value.faults
    assert (fault.line, fault.field) == (2, "workers")
    assert fault.problem.endswith(WARNING)


def test_store_rule__check_config_tells_it(tmp_path: Path) -> None:
    """The mistake is found without starting anything."""
    with pytest.raises(FileFaultsError) as raised:
        check(written(tmp_path, 3))
    assert [fault.problem.endswith(WARNING) for fault in raised.value.faults] == [True]


def test_store_rule__auto_says_how_many_it_means(tmp_path: Path) -> None:
    """Who wrote 'auto' did not write a number: the message names it."""
    with pytest.raises(FileFaultsError, match="'auto' is 3 workers here"):
        refuse_unshared_store(load_config(written(tmp_path, "auto"), {}), 3)


@pytest.mark.parametrize("workers", [1, "auto"])
def test_store_rule__one_worker_may_have_its_own_buckets(tmp_path: Path, workers: object) -> None:
    """The default is fine, and so is 'auto' on one CPU."""
    refuse_unshared_store(load_config(written(tmp_path, workers), {}), 1)


def test_store_rule__a_shared_store_is_fine(tmp_path: Path) -> None:
    """The rule is about stores that a process has for itself, and about no other."""
    config = load_config(written(tmp_path, 3), {})
    shared = config.settings.model_copy(update={"store": "redis://127.0.0.1:6379/0"})
    refuse_unshared_store(type(config)(shared, config.directory, config.tree), 3)


@pytest.mark.parametrize("workers", [1, 2, 256, "auto"])
def test_workers__says_how_many(workers: object) -> None:
    """A number of processes, or 'auto'."""
    assert Settings.model_validate({"workers": workers}).workers == workers


@pytest.mark.parametrize("workers", ["0", "257", "-1", "true", "1.5", "many", "[2]", "{}"])
def test_workers__refuses_anything_else_in_one_sentence(tmp_path: Path, workers: str) -> None:
    """One mistake, one message, with what may be there."""
    with pytest.raises(FileFaultsError) as raised:
        load_config(written(tmp_path, workers), {})
    (fault,) = raised.value.faults
    assert fault.problem.startswith("must be 'auto' or a number of processes from 1 to 256, not ")
