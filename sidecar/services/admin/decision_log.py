"""
Runs queries of the decision log for the admin API: in threads, so that its event loop stays free.

The API runs in a separate process, which decides no request (ADR 0011); DuckDB releases the lock of the
interpreter while it works.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from sidecar.services.admin.concurrency import CallLimit
from sidecar.services.admin.problems import ApiCode, problem_error, retry_error
from sidecar.stores.decisions.export import TooManyRowsError
from sidecar.stores.decisions.queries import DecisionLogError, DecisionLogTimeoutError
from sidecar.stores.decisions.reader import DecisionReader

QUERIES_MAX = 4
"""Concurrent queries, each with at most `reader.MEMORY_MIB_MAX` of memory; further ones are refused."""
LONG_QUERIES_MAX = 1
"""Concurrent queries that may take minutes: exports and erasures."""
QUERY_TIMEOUT_S = 10.0
LONG_QUERY_TIMEOUT_S = 600.0

Result = TypeVar("Result")


class DecisionLog:
    """The decision log that an API answers from; bounds its concurrent queries."""

    def __init__(self, folder: Path) -> None:
        """Read the decision log in *folder*; nothing is opened before a query."""
        self.reader = DecisionReader(folder)
        self._queries = CallLimit(QUERIES_MAX)
        self._long_queries = CallLimit(LONG_QUERIES_MAX)
        self._threads = ThreadPoolExecutor(QUERIES_MAX, "decision-log")

    async def run(self, query: Callable[[DecisionReader], Result], *, is_long: bool = False) -> Result:
        """
        Return the result of *query*, which runs in a thread and ends by itself at its deadline.

        *is_long*: it may take up to `LONG_QUERY_TIMEOUT_S` instead of `QUERY_TIMEOUT_S`.

        Raises:
            ProblemError: too many queries are running, or the query failed.
        """
        with ExitStack() as taken:
            taken.enter_context(self._queries.take())
            if is_long:
                taken.enter_context(self._long_queries.take())
            running = asyncio.get_running_loop().run_in_executor(self._threads, query, self.reader)
            # The thread goes on when the caller is cancelled, and counts until it ends.
            release = taken.pop_all().close
            running.add_done_callback(lambda done: (done.cancelled() or done.exception(), release()))
        try:
            return await asyncio.shield(running)
        except TooManyRowsError as error:
            raise problem_error(
                ApiCode.TOO_MANY_ROWS, str(error), "ask for fewer rows, with 'since' and 'until'"
            ) from None
        except DecisionLogTimeoutError as error:
            raise problem_error(
                ApiCode.TIMEOUT, str(error), "send 'since' and 'until' with a shorter span"
            ) from None
        except DecisionLogError as error:
            raise retry_error(ApiCode.DECISION_LOG_FAILED, str(error)) from None

    def close(self) -> None:
        """End all queries; the threads end soon after."""
        self.reader.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
