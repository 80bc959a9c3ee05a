"""docs/integrate/errors.md says what the developer of an integration does about each reason."""

from __future__ import annotations

import re
from pathlib import Path

from sidecar.domain.decisions import Reason

PAGE = (Path(__file__).parents[3] / "docs" / "integrate" / "errors.md").read_text()


def test_errors_page__has_every_public_reason_with_its_status() -> None:
    """And no other: callers never see reasons that share one public text."""
    rows = re.findall(r"^\| (\d{3}) \| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)
    reported = {(int(status), word) for status, words in rows for word in re.findall(r"\w+", words)}
    assert reported == {
        (reason.http_status, reason.public_label) for reason in Reason if reason is not Reason.OK
    }
