"""
What a worker tells its supervisor: where it serves, how ready it is, or why it could not start.

One message is one JSON object in one packet of a Unix socket (SOCK_SEQPACKET): whole or not there. The
end of either process ends the socket, which is how each learns of the other's death.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sidecar.process.listeners import Served, read_served, texts_of
from sidecar.process.readiness import Component, lacking, remarks
from sidecar.sources.file_faults import FileFault, FileFaultsError
from sidecar.transports.server import ListenError

PACKET_BYTES_MAX = 131_072
PLACE_CHARS_MAX = 200
PROBLEM_CHARS_MAX = 500
"""Of the parts of a mistake: as many as are shown (`FAULTS_SHOWN_MAX`) then fit one packet."""

START_ERRORS = (FileFaultsError, ListenError)
"""Mistakes of the user that end a start; they are told as they are."""


@dataclass(frozen=True, slots=True)
class Report:
    """
    How a worker fares.

    `served` None = it does not serve yet. `fault` = why it is about to end without ever serving.
    """

    served: Served | None = None
    components: Mapping[str, Component] = field(default_factory=dict)
    fault: Exception | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it serves and every component is ready."""
        return self.served is not None and all(component.is_ready for component in self.components.values())

    @property
    def lacking(self) -> str:
        """The components that are not ready, as text: 'registry: loading'."""
        return lacking(self.components)

    @property
    def state(self) -> str:
        """What /readyz says of the worker: what it lacks, or 'ready' and what is wrong all the same."""
        remarked = remarks(self.components)
        return self.lacking or (f"ready; {remarked}" if remarked else "ready")

    def packed(self) -> bytes:
        """As one packet."""
        content = {
            "served": None if self.served is None else texts_of(self.served),
            "components": self.components,
            "fault": _packed_fault(self.fault),
        }
        return json.dumps(content, ensure_ascii=False).encode(errors="replace")


def read_report(packet: bytes) -> Report:
    """The report in one packet."""
    content = json.loads(packet)
    served = content["served"]
    return Report(
        None if served is None else read_served(served),
        {name: Component(*component) for name, component in content["components"].items()},
        _unpacked_fault(content["fault"]),
    )


def _packed_fault(fault: Exception | None) -> Sequence[Any]:
    if isinstance(fault, FileFaultsError):
        return ["file", fault.total, [_cut(one) for one in fault.faults], fault.is_unreadable]
    return ["listen", str(fault)[:PROBLEM_CHARS_MAX]] if fault is not None else []


def _unpacked_fault(packed: Sequence[Any]) -> Exception | None:
    match packed:
        case ["file", total, faults, is_unreadable]:
            return FileFaultsError((FileFault(*fault) for fault in faults), total, is_unreadable)
        case ["listen", text]:
            return ListenError(text)
    return None


def _cut(fault: FileFault) -> FileFault:
    return FileFault(
        fault.file[-PLACE_CHARS_MAX:],
        fault.line,
        fault.field[:PLACE_CHARS_MAX],
        fault.problem[:PROBLEM_CHARS_MAX],
    )
