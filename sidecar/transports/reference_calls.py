"""
Calls on the reference transport: the coroutine that grpc.aio runs, and the call object for handlers.

Every method is registered with a stream of requests, even a unary one, so that the coroutine can answer a
call without a message; grpc.aio's unary form would leave the caller without an answer. The cost is not
measurable, because only one message is read.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import Generic, TypeVar

import grpc
import grpc.aio

from sidecar.observe.metrics import Metrics
from sidecar.rpc.calls import (
    EXCHANGE_MESSAGES_MAX,
    ExchangeHandler,
    ExchangeMethod,
    Method,
    StreamHandler,
    StreamMethod,
    UnaryHandler,
    UnaryMethod,
)
from sidecar.rpc.statuses import RpcError, StatusCode
from sidecar.transports.server import TransportLimits

_log = logging.getLogger("sidecar.transports")

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

_DEADLINE_SLACK_S = 0.02
"""The clocks of grpc-core and the loop differ by a few ms: a cancellation this close is a missed deadline."""

_OVERDUE = "the request did not arrive in time"

Context = grpc.aio.ServicerContext[bytes, bytes]
Handler = TypeVar("Handler", UnaryHandler, StreamHandler, ExchangeHandler)


class RunningCalls:
    """Limits and counts running handlers, counts ended calls, and logs handlers' errors."""

    def __init__(
        self, calls_max: int, metrics: Metrics, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        """Permit at most *calls_max* concurrent handlers; count in *metrics*."""
        self.running = 0
        self._clock_s = clock_s
        self._fault_logged_s = -math.inf
        self._calls_max = calls_max
        self._values = metrics.values
        self._running_slot = metrics.slot("sidecar_calls_running")
        self.observe_ns = metrics.histogram("sidecar_request_duration_seconds", "grpc").observe_ns
        self._ended_slots = tuple(metrics.slot("sidecar_calls_total", str(int(code))) for code in StatusCode)

    def begin(self) -> bool:
        """Take a slot for one handler; False = none is free."""
        if self.running >= self._calls_max:
            return False
        self.running += 1
        self._values[self._running_slot] += 1
        return True

    def end(self, code: StatusCode) -> None:
        """Release a slot, and count a call that ended with *code*."""
        self.running -= 1
        self._values[self._running_slot] -= 1
        self.count(code)

    def count(self, code: StatusCode) -> None:
        """Count a call that ended with *code*, with or without a handler."""
        self._values[self._ended_slots[code]] += 1

    def log_fault(self, what: str, error: Exception) -> None:
        """Log an internal error, at most once per second."""
        now_s = self._clock_s()
        if now_s - self._fault_logged_s >= 1.0:
            self._fault_logged_s = now_s
            _log.error("%s failed", what, exc_info=error)


class _ReferenceCall(Generic[Handler]):
    """The common part of unary and streaming calls."""

    __slots__ = (
        "_code",
        "_context",
        "_detail",
        "_ended",
        "_loop",
        "_lost_code",
        "_path",
        "_running",
        "_waiter",
        "deadline_s",
        "is_cancelled",
        "on_cancel",
    )

    def __init__(self, path: str, context: Context, running: RunningCalls) -> None:
        """Occupy a slot of *running* until the handler of *path* ends the call."""
        self._path = path
        self._context = context
        self._running = running
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._code = StatusCode.OK
        self._detail = ""
        self._lost_code = StatusCode.CANCELLED
        remaining_s: float | None = context.time_remaining()
        self.deadline_s = None if remaining_s is None else self._loop.time() + remaining_s
        self.on_cancel: Callable[[], None] | None = None
        self.is_cancelled = False

    def metadata(self, name: str) -> str | None:
        """See `Call.metadata`; binary metadata, which grpc.aio decodes, is encoded as base64 again."""
        values = [
            value if isinstance(value, str) else base64.b64encode(value).decode().rstrip("=")
            for key, value in self._context.invocation_metadata() or ()
            if key == name
        ]
        return ",".join(values) if values else None

    def fail(self, code: StatusCode, detail: str) -> None:
        """See `Call.fail`."""
        if not self._ended:
            self._code, self._detail = code, detail
            self._end(code)

    def _end(self, code: StatusCode) -> None:
        self._ended = True
        self._running.end(self._lost_code if self.is_cancelled else code)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        await self._waiter

    def _on_cancelled(self) -> None:
        """Notify the handler that the caller disconnected or the deadline passed."""
        late = self.deadline_s is not None and self._loop.time() >= self.deadline_s - _DEADLINE_SLACK_S
        self._cancel(StatusCode.DEADLINE_EXCEEDED if late else StatusCode.CANCELLED)

    def _cancel(self, code: StatusCode) -> None:
        if self.is_cancelled:
            return
        self.is_cancelled = True
        self._lost_code = code
        on_cancel, self.on_cancel = self.on_cancel, None
        if on_cancel is None or self._ended:
            return
        try:
            on_cancel()
        except Exception as error:
            self._running.log_fault(f"on_cancel of {self._path}", error)

    def _failed(self, error: Exception) -> None:
        """End the call with the status of *error*; only the text of an RpcError is public."""
        if isinstance(error, RpcError):
            self.fail(error.code, error.detail)
        else:
            self._running.log_fault(f"the handler of {self._path}", error)
            self.fail(StatusCode.UNKNOWN, "")


class ReferenceUnaryCall(_ReferenceCall[UnaryHandler]):
    """A unary call."""

    __slots__ = ("_answer",)

    _answer: bytes

    def reply(self, message: bytes) -> None:
        """See `UnaryCall.reply`."""
        if not self._ended:
            self._answer = message
            self._end(StatusCode.OK)

    async def serve(self, handle: UnaryHandler, message: bytes) -> bytes:
        """Run *handle* and wait for the answer."""
        started_ns = perf_counter_ns()
        try:
            answer = handle(message, self)
        except Exception as error:
            self._failed(error)
        else:
            if answer is not None:
                self.reply(answer)
        if not self._ended:
            try:
                await self._wait()
            except asyncio.CancelledError:
                self._on_cancelled()
                raise
        if self._code is not StatusCode.OK:
            await abort(self._context, self._code, self._detail)
        self._running.observe_ns(perf_counter_ns() - started_ns)
        return self._answer


class ReferenceStreamCall(_ReferenceCall[StreamHandler]):
    """A streaming call with a bounded queue of messages for the peer."""

    __slots__ = ("_queue", "_queued_bytes", "_queued_bytes_max")

    def __init__(self, path: str, context: Context, running: RunningCalls, queued_bytes_max: int) -> None:
        """Cancel the call if more than *queued_bytes_max* are unread."""
        super().__init__(path, context, running)
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._queued_bytes_max = queued_bytes_max

    def send(self, message: bytes) -> None:
        """See `StreamCall.send`."""
        if self._ended or self.is_cancelled:
            return
        self._queued_bytes += len(message)
        if self._queued_bytes > self._queued_bytes_max:
            self._queue.clear()
            self._detail = "the caller does not read its stream"
            self._cancel(StatusCode.RESOURCE_EXHAUSTED)
        else:
            self._queue.append(message)
        self._wake()

    def finish(self) -> None:
        """See `StreamCall.finish`."""
        if not self._ended:
            self._end(StatusCode.OK)

    async def serve(self, handle: StreamHandler, message: bytes) -> None:
        """Run *handle* and write its messages until the call ends."""
        try:
            handle(message, self)
        except Exception as error:
            self._failed(error)
        try:
            await self._write_messages()
        except (asyncio.CancelledError, grpc.aio.InternalError):
            self._on_cancelled()
            raise
        code = self._lost_code if self.is_cancelled else self._code
        if code is not StatusCode.OK:
            await abort(self._context, code, self._detail)

    async def _write_messages(self) -> None:
        while True:
            while self._queue:
                message = self._queue.popleft()
                await self._context.write(message)
                self._queued_bytes -= len(message)
            if self._ended or self.is_cancelled:
                return
            await self._wait()


class ReferenceExchange(_ReferenceCall[ExchangeHandler]):
    """A bidirectional call with one immediate answer per message."""

    __slots__ = ("_is_draining", "_timeout")

    def __init__(self, path: str, context: Context, running: RunningCalls, timeout_s: float) -> None:
        """End the call after *timeout_s*."""
        super().__init__(path, context, running)
        self._timeout = asyncio.timeout(timeout_s)
        self._is_draining = False

    def drain(self) -> None:
        """End the call now, so that it does not delay a drain."""
        if not (self._ended or self._timeout.expired()):
            self._is_draining = True
            self._timeout.reschedule(self._loop.time())

    async def serve(self, handle: ExchangeHandler, message: object) -> None:
        """Answer *message* and all further messages, until the request ends."""
        try:
            async with self._timeout:
                await self._answer_each(handle, message)
        except TimeoutError:
            if self._is_draining:
                self.fail(StatusCode.UNAVAILABLE, "this server is draining")
            else:
                self.fail(StatusCode.DEADLINE_EXCEEDED, _OVERDUE)
        except (asyncio.CancelledError, grpc.aio.InternalError):
            self._on_cancelled()
            self.fail(StatusCode.CANCELLED, "")
            raise
        if self._code is not StatusCode.OK:
            await abort(self._context, self._code, self._detail)

    async def _answer_each(self, handle: ExchangeHandler, message: object) -> None:
        answered = 0
        while isinstance(message, bytes):
            if answered == EXCHANGE_MESSAGES_MAX:
                self.fail(
                    StatusCode.RESOURCE_EXHAUSTED, f"the call has more than {EXCHANGE_MESSAGES_MAX} messages"
                )
                return
            try:
                answer = handle(message, self)
            except Exception as error:
                self._failed(error)
                return
            await self._context.write(answer)
            answered += 1
            message = await self._context.read()
        self._end(StatusCode.OK)


class CallRunner:
    """Creates grpc.aio's method handlers; each of their coroutines is one call."""

    def __init__(self, running: RunningCalls, limits: TransportLimits) -> None:
        """Take a slot of *running* for each handler; apply *limits*."""
        self.open_calls = 0
        self._exchanges: set[ReferenceExchange] = set()
        self._running = running
        self._limits = limits

    def method_handler(self, method: Method) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Return grpc.aio's handler of *method*, with raw bytes as messages."""
        if isinstance(method, UnaryMethod):
            return grpc.stream_unary_rpc_method_handler(self._unary(method))
        if isinstance(method, ExchangeMethod):
            return grpc.stream_stream_rpc_method_handler(self._exchange(method))
        return grpc.stream_stream_rpc_method_handler(self._stream(method))

    def end_exchanges(self) -> None:
        """End all exchanges, so that they do not delay a drain."""
        for call in self._exchanges:
            call.drain()

    def unknown_method_handler(self) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Return a handler that refuses and counts calls of unknown methods."""

        async def serve(_requests: object, context: Context) -> None:
            await self._refuse(context, StatusCode.UNIMPLEMENTED, "unknown service or method")

        return grpc.stream_stream_rpc_method_handler(serve)

    def _unary(self, method: UnaryMethod) -> Callable[[object, Context], object]:
        async def serve(_requests: object, context: Context) -> bytes:
            self.open_calls += 1
            try:
                message = await self._receive(context)
                if message is None:
                    return b""
                call = ReferenceUnaryCall(method.path, context, self._running)
                return await call.serve(method.handle, message)
            finally:
                self.open_calls -= 1

        return serve

    def _stream(self, method: StreamMethod) -> Callable[[object, Context], object]:
        queued_bytes_max = self._limits.stream_queue_bytes_max

        async def serve(_requests: object, context: Context) -> None:
            self.open_calls += 1
            try:
                message = await self._receive(context)
                if message is not None:
                    call = ReferenceStreamCall(method.path, context, self._running, queued_bytes_max)
                    await call.serve(method.handle, message)
            finally:
                self.open_calls -= 1

        return serve

    def _exchange(self, method: ExchangeMethod) -> Callable[[object, Context], object]:
        async def serve(_requests: object, context: Context) -> None:
            self.open_calls += 1
            try:
                message = await self._receive(context)
                if message is not None:
                    call = ReferenceExchange(
                        method.path, context, self._running, self._limits.request_timeout_s
                    )
                    self._exchanges.add(call)
                    try:
                        await call.serve(method.handle, message)
                    finally:
                        self._exchanges.discard(call)
            finally:
                self.open_calls -= 1

        return serve

    async def _receive(self, context: Context) -> bytes | None:
        """
        Read the request and take a slot for its handler.

        Returns:
            None if the call was refused and answered.
        """
        message = await self._read(context)
        if not isinstance(message, bytes):  # grpc.aio.EOF
            await self._refuse(context, StatusCode.UNIMPLEMENTED, "the request has no message")
            return None
        if context.time_remaining() == 0:  # grpc-core is about to answer the same
            await self._refuse(context, StatusCode.DEADLINE_EXCEEDED, "the deadline has passed")
            return None
        if not self._running.begin():
            await self._refuse(context, StatusCode.RESOURCE_EXHAUSTED, "too many calls are running")
            return None
        return message

    async def _read(self, context: Context) -> object:
        """
        Return the request, or grpc.aio.EOF if the caller sends no message.

        Raises:
            CancelledError: the caller disconnected, or took longer than `request_timeout_s`.
        """
        task = asyncio.current_task()
        assert task is not None
        overdue = asyncio.get_running_loop().call_later(self._limits.request_timeout_s, task.cancel, _OVERDUE)
        try:
            return await context.read()
        except asyncio.CancelledError as cancelled:
            if _OVERDUE in cancelled.args:
                task.uncancel()
                await self._refuse(context, StatusCode.DEADLINE_EXCEEDED, _OVERDUE)
            self._running.count(StatusCode.CANCELLED)
            raise
        finally:
            overdue.cancel()

    async def _refuse(self, context: Context, code: StatusCode, detail: str) -> None:
        """End a call without a handler; count it only if the status is ours and not grpc-core's."""
        try:
            await abort(context, code, detail)
        except grpc.aio.AbortError:
            self._running.count(code)
            raise


async def abort(context: Context, code: StatusCode, detail: str) -> None:
    """
    End a call with a non-OK status; does nothing if the connection is closed.

    Raises:
        AbortError: always after sending the status, because grpc.aio expects it.
    """
    try:
        await context.abort(_GRPC_CODES[code], detail)
    except grpc.aio.AbortError:
        raise
    except grpc.aio.InternalError:
        _log.debug("a caller disconnected before its status %s was sent", code.name)
