"""
Forward auth as most people would write it first: a FastAPI dependency with redis-py, on uvicorn.

`python -m loadtest.baselines.fastapi_sidecar --listen HOST:PORT --redis URL --config FILE` answers nginx's
auth_request at /auth/nginx with the same decision as Sidecar: see `plain_decisions`. uvicorn runs on
uvloop and httptools.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import redis.asyncio
import uvicorn
import yaml
from fastapi import Depends, FastAPI, Request, Response

from loadtest.baselines.plain_decisions import Decisions, Outcome, identity_of


def create_app(redis_url: str, config: Path, settings: dict[str, Any]) -> FastAPI:
    """The application."""
    client = redis.asyncio.from_url(redis_url)
    decisions = Decisions(config.parent / settings["registry"], settings["routes"], client)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await client.aclose()

    async def decide(request: Request) -> Outcome:
        headers = request.headers
        return await decisions.decide(headers["x-original-method"], headers["x-original-uri"], headers)

    app = FastAPI(lifespan=lifespan)

    @app.api_route("/auth/nginx", methods=["GET", "HEAD"])
    async def answer(outcome: Outcome = Depends(decide)) -> Response:  # noqa: B008 - FastAPI's own form
        headers = dict(outcome.limits)
        if not outcome.reason and outcome.known is not None:
            headers |= dict(identity_of(outcome.known, outcome.decision_id)) | {"x-auth-status": "200"}
            return Response(status_code=200, headers=headers)
        status = "429" if outcome.reason == "rate_limited" else "403"
        headers |= {"x-auth-reason": outcome.reason, "x-auth-status": status}
        return Response(status_code=403, headers=headers)

    return app


def main() -> None:
    """Parse the command line and serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--config", type=Path, required=True, help="a sidecar.yaml; its registry and routes")
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    settings = yaml.safe_load(arguments.config.read_text())
    app = create_app(arguments.redis, arguments.config, settings)
    uvicorn.run(
        app, host=host, port=int(port), loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )


if __name__ == "__main__":
    main()
