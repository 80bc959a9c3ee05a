"""
Work that takes long: it has a deadline, and it ends when nobody waits for its answer any more.

It runs in the call's own coroutine, not in a task beside it: whoever bounds the calls' share of the event
loop bounds this with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")


async def while_awaited(receive: Receive, work: Coroutine[Any, Any, Result], timeout_s: float) -> Result:
    """
    What *work* comes to.

    Args:
        receive: the call's, with its body read already: what it tells next is that the caller has left.
        work: ended at the deadline, or when the caller leaves.
        timeout_s: the deadline.

    Raises:
        TimeoutError: it passed.
        ClientDisconnect: the caller is gone.
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
        work.close()  # nothing, unless it was never begun
        if watching is not None:
            watching.cancel()


async def _watch(receive: Receive, limit: asyncio.Timeout) -> None:
    """Let the deadline be now when the caller leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    limit.reschedule(asyncio.get_running_loop().time())


class BoundedStream(StreamingResponse):
    """
    A streamed answer with a deadline for the whole of it, so that a slow reader holds no place for ever.

    At the deadline the connection is broken: its reader must not take a part for the whole.
    """

    def __init__(self, content: AsyncIterator[bytes], media_type: str, timeout_s: float) -> None:
        """Send *content* within *timeout_s*."""
        super().__init__(content, media_type=media_type)
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; see the ASGI specification."""
        await while_awaited(receive, self.stream_response(send), self._timeout_s)
