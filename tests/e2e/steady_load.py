"""Requests without a pause, from several clients, that must all be answered with 200."""

from __future__ import annotations

import http.client

from deploy.demo.calling import Client
from deploy.demo.sidecar import Owner
from tests.e2e.in_background import InBackground
from tests.waiting import eventually

CLIENTS = 3
PATH = "/v1/inventory/42"
TIMEOUT_S = 60.0
PAUSE_S = 0.005
"""Between two requests of one client: the processes under load need the CPUs, too."""


class SteadyLoad(InBackground):
    """
    Runs in separate threads while the `with` block is open.

    Bounded by what the block waits for: `await_more` requests, not a time.
    """

    def __init__(self, port: int, owner: Owner, *, faults_max: int = 0) -> None:
        """Will ask 127.0.0.1:*port* with *owner*'s key, and stop after more than *faults_max* faults."""
        super().__init__("client", CLIENTS, TIMEOUT_S)
        self._port = port
        self._owner = owner
        self._faults_max = faults_max
        self._counts = [0] * CLIENTS
        self.faults: list[str] = []
        """What was not 200, in words."""

    @property
    def answered(self) -> int:
        """How many requests have been answered with 200."""
        return sum(self._counts)

    @property
    def is_spoilt(self) -> bool:
        """Whether there were more faults than may be."""
        return len(self.faults) > self._faults_max

    def await_more(self, count: int) -> None:
        """Wait until *count* more requests were answered with 200, or the load is spoilt."""
        goal = self.answered + count
        eventually(lambda: self.answered >= goal or self.is_spoilt, TIMEOUT_S, f"{count} more answers")

    def go_on(self, number: int) -> None:
        """Ask, as client *number*."""
        client = Client(self._port)
        while not self.is_over.wait(PAUSE_S) and not self.is_spoilt:
            try:
                answer = client.send("GET", PATH, self._owner.headers)
                fault = "" if answer.status == 200 else f"{answer.status} {answer.body[:200]!r}"
            except (OSError, http.client.HTTPException) as error:
                fault = repr(error)
            if fault:
                self.faults.append(fault)
            else:
                self._counts[number] += 1
        client.close()
