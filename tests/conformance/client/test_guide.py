"""The examples of docs/integrate/python-client.md, run unchanged against a real sidecar."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from .applications import serve_uvicorn, serve_wsgi
from .conftest import RunningSidecar

GUIDE = Path(__file__).parents[3] / "docs" / "integrate" / "python-client.md"
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", GUIDE.read_text(), re.DOTALL))


def run(name: str, sidecar: RunningSidecar, **variables: Any) -> dict[str, Any]:
    """The variables that the example *name* leaves, its sidecar being *sidecar*."""
    assert "127.0.0.1:9191" in EXAMPLES[name]
    variables["__name__"] = "example"
    code = compile(EXAMPLES[name].replace("127.0.0.1:9191", sidecar.target), str(GUIDE), "exec")
    exec(code, variables)  # noqa: S102 - the guide is our own file
    return variables


def test_guide__every_example_is_run() -> None:
    """A block without a name would be run by nobody."""
    assert GUIDE.read_text().count("```python") == len(EXAMPLES) == 4


def test_guide__the_client_runs(sidecar: RunningSidecar, capsys: pytest.CaptureFixture[str]) -> None:
    """One allowed request and one denied."""
    for api_key in (sidecar.acme.api_key, "junk"):
        run("client", sidecar, api_key=api_key)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "acme may go on; 59 of 60 a minute left"
    assert second.startswith("403 malformed_credential {")


@pytest.mark.parametrize("name", ["fastapi", "flask", "django"])
def test_guide__the_applications_run(name: str, sidecar: RunningSidecar) -> None:
    """An allowed request reaches the application, a denied one does not."""
    variables = run(name, sidecar)
    app = variables.get("app") or variables["application"]
    serving = serve_uvicorn(app) if name == "fastapi" else serve_wsgi(app)
    with serving as url, httpx.Client(trust_env=False) as http:
        allowed = http.get(f"{url}/v1/orders/42", headers={"x-api-key": sidecar.acme.api_key})
        denied = http.get(f"{url}/v1/orders/42")
    assert (allowed.status_code, allowed.headers["x-ratelimit-remaining"]) == (200, "59")
    if name != "django":
        assert allowed.json() == {"order": "42", "for": "acme"}
    assert (denied.status_code, denied.json()["reason"]) == (403, "missing_credential")
