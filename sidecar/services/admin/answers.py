"""JSON answers; long lists are encoded in pieces, so that other calls run in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping

from starlette.responses import Response

ITEMS_PER_TURN = 8
"""Items in one turn of the event loop: a suspension must not wait for 500, which take 50 to 100 ms."""


def answer(
    content: Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return *content* as a JSON answer."""
    return Response(json.dumps(content).encode() + b"\n", status, dict(headers or {}), "application/json")


async def list_answer(items: Iterable[object], rest: Mapping[str, object]) -> Response:
    """Return an answer with many *items*, which may be a generator, and the *rest* of its fields."""
    parts: list[str] = []
    for count, item in enumerate(items, 1):
        parts.append(json.dumps(item))
        if count % ITEMS_PER_TURN == 0:
            await asyncio.sleep(0)
    tail = json.dumps(rest)[1:]
    comma = ", " if rest else ""
    text = f'{{"items": [{", ".join(parts)}]{comma}{tail}\n'
    return Response(text.encode(), media_type="application/json")


def etag(generation: int) -> dict[str, str]:
    """The ETag header for the generation of an integration (RFC 9110 8.8.3)."""
    return {"ETag": f'"{generation}"'}
