"""JSON answers, made piece by piece where they are long: decisions share the event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping

from starlette.responses import Response

ITEMS_PER_TURN = 8
"""Members of a list that are made before the event loop gets its turn: well below a millisecond."""


def answer(
    content: Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """*content* as JSON."""
    return Response(json.dumps(content).encode() + b"\n", status, dict(headers or {}), "application/json")


async def list_answer(items: Iterable[object], rest: Mapping[str, object]) -> Response:
    """An answer of many *items*, which may be made on demand, and the *rest* of its fields."""
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
    """The header that names the generation of one integration (RFC 9110 8.8.3)."""
    return {"ETag": f'"{generation}"'}
