"""
Runs long work with a deadline, and cancels it when the caller disconnects.

The work runs in the call's own coroutine, not in another task, so the limits of the call apply to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")


async def run_while_connected(
    receive: Receive, work: Coroutine[Any, Any, Result], timeout_s: float
) -> Result:
    """
    Return the result of *work*.

    Args:
        receive: the call's, with the body already read: its next message is the disconnect.
        work: cancelled at the deadline, or when the caller disconnects.
        timeout_s: the deadline.

    Raises:
        TimeoutError: the deadline has passed.
        ClientDisconnect: the caller has disconnected.
    """
    watching: asyncio.Future[None] | None = None
    try:
        async with asyncio.timeout(timeout_s) as limit:
            watching = asyncio.ensure_future(_watch(receive, limit))
            return await work
    except TimeoutError:
        if watching is not None and watching.done():
            raise ClientDisconnect from None
        raise
    finally:
        work.close()  # no effect unless it was never started
        if watching is not None:
            watching.cancel()


async def _watch(receive: Receive, limit: asyncio.Timeout) -> None:
    """Move the deadline to now when the caller disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    limit.reschedule(asyncio.get_running_loop().time())


class BoundedStream(StreamingResponse):
    """
    A streamed answer with a deadline for the whole, so that a slow reader cannot occupy a call forever.

    At the deadline the connection is closed, so that the reader notices the incomplete answer.
    """

    def __init__(self, content: AsyncIterator[bytes], media_type: str, timeout_s: float) -> None:
        """Send *content* within *timeout_s*."""
        super().__init__(content, media_type=media_type)
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; see the ASGI specification."""
        await run_while_connected(receive, self.stream_response(send), self._timeout_s)
