"""docs/reference/admin-api.md says what the API does: its tables and examples are held against it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from sidecar.domain.integrations import DETAILS
from sidecar.domain.refusals import Code, GenerationConflictError, RefusalKind
from sidecar.domain.roles import Role
from sidecar.services.admin.api import ENDPOINTS
from sidecar.services.admin.audit import EXPORT_TIMEOUT_S, VERIFY_TIMEOUT_S
from sidecar.services.admin.authentication import ATTEMPTS_BURST, ATTEMPTS_PER_MINUTE, SOURCES_MAX
from sidecar.services.admin.bodies import REVIEW_PAGE_MAX, WAIT_S_MAX
from sidecar.services.admin.call import BODY_BYTES_MAX, BODY_TIMEOUT_S, QUERY_CHARS_MAX
from sidecar.services.admin.concurrency import CALLS_MAX, LONG_CALLS_MAX
from sidecar.services.admin.decision_log import (
    LONG_QUERIES_MAX,
    LONG_QUERY_TIMEOUT_S,
    QUERIES_MAX,
    QUERY_TIMEOUT_S,
)
from sidecar.services.admin.problems import KIND_STATUS, ApiCode, refused
from sidecar.services.admin.review import OLD_DAYS, FlagWord
from sidecar.services.admin.views import RecordView
from sidecar.stores.decisions.export import EXPORT_ROWS_MAX, EXPORT_TEXT_BYTES_MAX
from sidecar.stores.decisions.reader import MEMORY_MIB_MAX
from sidecar.stores.registry.protocol import (
    IDEMPOTENCY_KEYS_MAX,
    IDEMPOTENCY_LIFETIME_US,
    PAGE_MAX,
    REQUESTS_MAX,
)
from tests.administration import DAY_US
from tests.unit.services.admin.admin_api import AdminApi

PAGE = (Path(__file__).parents[4] / "docs" / "reference" / "admin-api.md").read_text()
ORIGIN = "http://127.0.0.1:9193"


def test_views__show_every_detail() -> None:
    """A detail that is declared in the domain is in the answers, too."""
    assert set(DETAILS) <= set(RecordView.__annotations__)


def test_documented__every_endpoint_with_its_roles() -> None:
    """The table is the API's own: method, path, who may, and what it does."""
    rows = re.findall(r"^\| ([A-Z]+) \| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
    expected = [
        (
            endpoint.method,
            endpoint.path,
            ", ".join(role.value for role in Role if endpoint.admits(role)) if endpoint.actions else "any",
            endpoint.summary,
        )
        for endpoint in ENDPOINTS
    ]
    assert rows == expected


def test_documented__every_code_under_its_status() -> None:
    """Anyone who handles errors finds each word that can come."""
    rows = re.findall(r"^\| (\d{3}) \| ([^|]+) \|", PAGE, re.MULTILINE)
    documented = {(int(status), word) for status, words in rows for word in re.findall(r"`(\w+)`", words)}
    crossed = refused(GenerationConflictError("acme", 1, 2)).status
    expected = {
        (crossed if code is Code.GENERATION_CONFLICT else KIND_STATUS[code.kind], code.text) for code in Code
    } | {(code.status, code.text) for code in ApiCode}
    assert documented == expected
    assert set(KIND_STATUS) == set(RefusalKind)


def test_documented__every_flag_of_the_review() -> None:
    """And nothing else in that place."""
    reported = PAGE.split("Its flags:")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", reported)) == set(FlagWord.__args__)
    assert f"more than {OLD_DAYS} days" in reported


def test_documented__the_bounds_are_the_real_ones() -> None:
    """Each number of the last table is the one in force."""
    reported = PAGE.split("## Bounds")[1]
    for text in (
        f"{CALLS_MAX}; of these {LONG_CALLS_MAX} ",
        f"{BODY_BYTES_MAX // 1_048_576} MiB, within {BODY_TIMEOUT_S:g} s",
        f"{QUERY_CHARS_MAX:,} characters",
        f"{PAGE_MAX} members; of the review {REVIEW_PAGE_MAX}",
        f"| changes of one call | {REQUESTS_MAX:,} |",
        f"| wait for sidecars | {WAIT_S_MAX} s |",
        f"| verification | {VERIFY_TIMEOUT_S / 60:g} minutes",
        f"| export | {EXPORT_TIMEOUT_S / 60:g} minutes",
        f"{QUERIES_MAX} at once, each within {QUERY_TIMEOUT_S:g} s and {MEMORY_MIB_MAX} MiB",
        f"of these {LONG_QUERIES_MAX} export or erasure, within {LONG_QUERY_TIMEOUT_S / 60:g} minutes",
        f"{EXPORT_ROWS_MAX:,} rows, and {EXPORT_TEXT_BYTES_MAX >> 30} GiB",
        f"{ATTEMPTS_PER_MINUTE} a minute and address; {SOURCES_MAX:,} addresses",
        f"at most {IDEMPOTENCY_KEYS_MAX:,}",
    ):
        assert text in reported
    assert (IDEMPOTENCY_LIFETIME_US, ATTEMPTS_BURST) == (DAY_US, ATTEMPTS_PER_MINUTE)


def examples() -> Iterator[tuple[str, str, dict[str, str], object]]:
    """Method, path, headers and body of each `curl` on the page."""
    for line in re.findall(r"^\$ (curl .*)$", PAGE, re.MULTILINE):
        words = iter(shlex.split(line)[1:])
        headers: dict[str, str] = {}
        url, body = "", None
        for word in words:
            if word == "-H":
                name, _, value = next(words).partition(": ")
                headers[name] = value
            elif word == "-d":
                body = json.loads(next(words))
            elif word != "-s":
                url = word
        assert url.startswith(ORIGIN) and headers.pop("$AUTH") == ""
        parts = urlsplit(url)
        yield "GET" if body is None else "POST", f"{parts.path}?{parts.query}", headers, body


def test_documented__the_examples_work(api: AdminApi) -> None:
    """In their order, on an empty registry."""
    answers = []
    for method, path, headers, body in examples():
        answer = api.call(method, path, body, headers=headers)
        assert answer.status_code in (200, 201), (path, answer.text)
        answers.append(answer.json())
    assert len(answers) == 8
    assert answers[-1]["is_intact"]
    actions = ["integration.suspend", "credential.issue", "limit.raise", "integration.create"]
    assert [item["action"] for item in answers[-2]["items"]] == actions
