"""Asking an HTTP handler without a server: one exchange at a time, over a wire that records the answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from sidecar.transports.http1.exchange import Exchange, Handler
from sidecar.transports.http1.messages import Headers, Request


@dataclass
class Answer:
    """What a handler answered."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class RecordingWire:
    """Implements `exchange.ExchangeConnection` by keeping what is sent."""

    def __init__(self) -> None:
        """Nothing was sent yet."""
        self.answer = Answer()
        self.answered = asyncio.Event()
        self.is_trusted = False

    def begin_answer(self, status: int, headers: Headers) -> None:
        """Keep status and headers."""
        self.answer.status = status
        self.answer.headers = {name.decode(): value.decode() for name, value in headers}

    def send(self, data: bytes, is_last: bool) -> None:
        """Keep a part of the body."""
        self.answer.body += data
        if is_last:
            self.answered.set()

    def want_body(self) -> None:
        """The body is there from the start."""

    def trust(self) -> None:
        """Keep that it was said."""
        self.is_trusted = True

    def abort(self, reason: str) -> None:
        """No answer comes."""
        self.answered.set()


async def ask(handler: Handler, path: str, method: str = "GET", headers: Headers = ()) -> Answer:
    """What *handler* answers to a request without a body."""
    wire = RecordingWire()
    target = path.encode()
    handler(Exchange(Request(method, target, target, b"", headers), wire))
    async with asyncio.timeout(60):
        await wire.answered.wait()
    return wire.answer
