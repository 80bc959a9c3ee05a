"""A Prometheus with the project's rules that scrapes sidecars, and questions to it."""

from __future__ import annotations

import http.client
import json
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.demo.programs import Program, free_port

FILES = Path(__file__).parents[1] / "prometheus"
NAMES = ("prometheus.yml", "sidecar.rules.yml", "sidecar.alerts.yml")
SCRAPE_INTERVAL_S = 3
ASK_TIMEOUT_S = 10.0
TARGETS = '["127.0.0.1:9193"]'
RATE_INTERVAL_S = 15
VARIABLES = {"$instance": ".*", "$integration": ".*"}
"""What Grafana would put into the queries of the dashboard."""


class Prometheus(Program):
    """
    Prometheus with the files of deploy/prometheus, faster than in production.

    It scrapes every three seconds and evaluates rules every second; with *alerts_at_once* an alert fires as
    soon as its expression is true, whatever its `for` says.
    """

    def __init__(self, folder: Path, targets: Sequence[str], alerts_at_once: bool = False) -> None:
        """Start it with its data in *folder*, which must exist; *targets* are 'host:port'."""
        self._port = free_port()
        for name in NAMES:
            text = (FILES / name).read_text().replace(TARGETS, json.dumps(list(targets)))
            text = re.sub(r"scrape_interval: \w+", f"scrape_interval: {SCRAPE_INTERVAL_S}s", text)
            text = re.sub(r"\b(evaluation_)?interval: \w+", r"\1interval: 1s", text)
            if alerts_at_once:
                text = re.sub(r"\bfor: \w+", "for: 0s", text)
            (folder / name).write_text(text)
        listen = f"--web.listen-address=127.0.0.1:{self._port}"
        files = (f"--config.file={folder / NAMES[0]}", f"--storage.tsdb.path={folder / 'data'}")
        super().__init__("prometheus", ["prometheus", *files, listen], folder)

    def ask(self, path: str, **parameters: str) -> Any:
        """
        Return the data of an API call; {} while Prometheus still starts.

        Raises:
            ValueError: Prometheus rejected the call.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ASK_TIMEOUT_S)
        try:
            connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
            response = connection.getresponse()
            if response.status == 503:  # it still opens its database
                return {}
            answer = json.loads(response.read())
        except ConnectionError:
            return {}
        finally:
            connection.close()
        if answer["status"] != "success":
            raise ValueError(f"{parameters}: {answer.get('error')}")
        return answer["data"]

    def query(self, text: str) -> list[dict[str, Any]]:
        """Return the vector of a query of the dashboard now, for all instances and integrations."""
        found: list[dict[str, Any]] = self.ask("query", query=filled_in(text)).get("result", [])
        return found

    def query_range(
        self, text: str, start_s: float, end_s: float, step_s: float, rate_interval_s: int
    ) -> list[dict[str, Any]]:
        """Return the series of a query of the dashboard between two Unix times."""
        span = {"start": f"{start_s:.3f}", "end": f"{end_s:.3f}", "step": f"{step_s:g}"}
        answer = self.ask("query_range", query=filled_in(text, rate_interval_s), **span)
        found: list[dict[str, Any]] = answer.get("result", [])
        return found


def filled_in(text: str, rate_interval_s: int = RATE_INTERVAL_S) -> str:
    """*text* with values for the variables of the dashboard."""
    for variable, value in {**VARIABLES, "$__rate_interval": f"{rate_interval_s}s"}.items():
        text = text.replace(variable, value)
    return text
