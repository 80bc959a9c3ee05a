"""
One HTTP/1.1 connection: reads requests one after another, writes answers, and closes.

After each read, reading pauses and the connection waits in the server's work queue. So a peer that sends much
or often only delays itself, and no buffer exceeds one head and one read. Pipelined requests stay in the
buffer until the peer has read the previous answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from enum import Enum, auto
from time import perf_counter_ns
from typing import cast

from sidecar.domain.client_address import network_of
from sidecar.transports.http1.bodies import Body, SizedBody, body_of
from sidecar.transports.http1.core import HttpCore
from sidecar.transports.http1.exchange import Exchange
from sidecar.transports.http1.heads import END_OF_HEAD, find_head, parse_head
from sidecar.transports.http1.messages import (
    Headers,
    HttpError,
    Request,
    head_bytes,
    problem,
    refusal,
    response_bytes,
)

DISCARD_BYTES_MAX = 65_536
"""Maximum unread rest of a body that is read and discarded; for a longer rest the connection closes."""

_BODILESS = frozenset((204, 304))
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Phase(Enum):
    CONNECTING = auto()  # TLS handshake
    READING = auto()  # a head, or waiting for its first byte
    WAITING = auto()  # a complete head waits for a slot
    RUNNING = auto()
    ENDING = auto()  # all output is written; waiting for the peer to close
    CLOSED = auto()


class Connection(asyncio.BufferedProtocol):
    """A connection from accept to close. Implements `ConnectionHandle` and `ExchangeConnection`."""

    __slots__ = (
        "__weakref__", "_accepted", "_body", "_core", "_due_reason", "_due_tick", "_exchange", "_framing",
        "_inbox", "_is_continue_due", "_is_eof", "_is_last", "_is_reading", "_is_tls", "_is_trusted",
        "_is_writable", "_peer", "_pending_head", "_phase", "_reason", "_request", "_searched", "_started_ns",
        "_transport", "_unread", "_unsent_bytes", "source",
    )  # fmt: skip

    def __init__(self, core: HttpCore, accepted: socket.socket, peer: tuple[str, int] | None) -> None:
        """Serve an *accepted* socket; *peer* None = a Unix socket."""
        self.source = "" if peer is None else network_of(peer[0])
        self._core = core
        self._accepted = accepted
        self._peer = peer
        self._transport = cast(asyncio.Transport, None)  # until connection_made
        self._phase = _Phase.CONNECTING
        self._inbox = bytearray()
        self._searched = 0
        self._request: Request | None = None
        self._exchange: Exchange | None = None
        self._body: Body = SizedBody(0)
        self._unread: SizedBody | None = None  # the unread rest of the previous request's body
        self._pending_head = b""
        self._framing = ""  # of the answer: "length", "chunked", "close" or "none", see `_framing`
        self._due_tick = 0
        self._due_reason = ""  # '' = no deadline
        self._reason = "peer"
        self._unsent_bytes = 0
        self._started_ns = 0
        self._is_last = False
        self._is_trusted = False
        self._is_continue_due = False
        self._is_tls = False
        self._is_eof = False
        self._is_reading = True
        self._is_writable = True

    # The socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request."""
        self._transport = cast(asyncio.Transport, transport)
        if self._phase is _Phase.CLOSED:  # evicted during the handshake
            self._transport.abort()
            return
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        # Pause as soon as the kernel's buffer is full; TLS transports do not accept a bound of 0.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._phase = _Phase.READING
        self._set_deadline(self._core.limits.first_byte_timeout_s, "no_request")
        if self._core.is_draining:
            self.drain()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the shared buffer, which is free again when `buffer_updated` returns."""
        return self._core.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Store the data, and pause reading until the work queue calls `work`."""
        if self._phase is _Phase.CLOSED:
            return
        if self._phase is not _Phase.ENDING:
            if not self._inbox:
                self._started_ns = perf_counter_ns()
            self._inbox += self._core.read_buffer[:nbytes]
        if self._phase is _Phase.READING and self._core.queue.is_free:
            self.work()  # one request; what is pipelined behind it waits in the queue
            return
        self._pause_reading()
        self._core.queue.add(self)

    def eof_received(self) -> bool:
        """The peer sends no more: cancel the running request, but answer pipelined requests."""
        self._is_eof = True
        if self._is_tls:
            return False  # closes; half-closed TLS connections are not supported
        if self._exchange is not None:
            self._cancel_exchange()
        self._core.queue.add(self)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """Drop the reference to the transport, so that the TLS memory is freed immediately."""
        if self._phase is not _Phase.CLOSED:
            self._close()
        self._transport = cast(asyncio.Transport, None)

    def pause_writing(self) -> None:
        """Set a deadline for the peer to read the answer."""
        core = self._core
        self._is_writable = False
        self._unsent_bytes = self._transport.get_write_buffer_size()
        core.slow[self] = None
        if self._phase is not _Phase.ENDING:
            self._set_deadline(core.limits.write_timeout_s, "slow_reader")
        core.add_unsent(self._unsent_bytes)

    def resume_writing(self) -> None:
        """The peer has read everything: continue."""
        if self._phase is _Phase.CLOSED:
            return
        self._is_writable = True
        self._clear_unsent()
        if self._exchange is not None:
            self._clear_deadline()
            self._exchange.is_writable = True
            self._exchange.on_change()
        elif self._phase is _Phase.READING:
            self._set_deadline(self._core.limits.idle_timeout_s, "idle")
            self._core.queue.add(self)
        elif self._phase is _Phase.ENDING:
            self._set_deadline(self._core.limits.linger_s, "ending")
            self._core.queue.add(self)

    @property
    def buffered_bytes(self) -> int:
        """Bytes that were received and not processed yet."""
        return len(self._inbox)

    def _pause_reading(self) -> None:
        if self._is_reading and not self._transport.is_closing():
            self._is_reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._is_reading and not self._is_eof and not self._transport.is_closing():
            self._is_reading = True
            self._transport.resume_reading()

    # Work.

    def work(self) -> None:
        """See `ConnectionHandle.work`."""
        try:
            self._advance()
        except HttpError as error:
            self._refuse(error)
        except Exception:
            self._core.log_fault("an HTTP connection")
            self.abort("internal")

    def _advance(self) -> None:
        phase = self._phase
        if phase is _Phase.READING:
            self._read_head()
        elif phase is _Phase.WAITING:
            self._run()
        elif phase is _Phase.RUNNING:
            self._read_body()
        elif phase is _Phase.ENDING:
            if self._is_eof and self._is_writable:
                self._transport.close()
            else:
                self._resume_reading()

    def _read_head(self) -> None:
        inbox = self._inbox
        if not self._is_writable:
            return  # `resume_writing` continues
        if self._unread is not None:
            self._unread.take(inbox, len(inbox))
            if self._unread.is_whole:
                self._unread = None
        if self._unread is None:
            while inbox.startswith(b"\r\n"):  # RFC 9112 2.2; it does not extend the deadline
                del inbox[:2]
            end = find_head(inbox, self._searched, self._core.limits)
            if end:
                head = bytes(inbox[:end])
                del inbox[:end]
                self._searched = 0
                self._take_request(parse_head(head, self._core.limits, self._peer, self._is_tls))
                return
            if inbox and not self._searched:
                self._set_deadline(self._core.limits.head_timeout_s, "header_timeout")
            self._searched = len(inbox)
        if self._is_eof:
            self._end("peer")
        else:
            self._resume_reading()

    def _take_request(self, request: Request) -> None:
        self._request = request
        self._phase = _Phase.WAITING
        if self._core.waiting:
            self._wait_for_slot()
        else:
            self._run()

    def _wait_for_slot(self) -> None:
        if self._due_reason != "overloaded":
            self._set_deadline(self._core.limits.wait_timeout_s, "overloaded")
        self._core.waiting.add(self)

    def _run(self) -> None:
        core, request = self._core, self._request
        assert request is not None
        if not core.begin_request():
            self._wait_for_slot()
            return
        core.idle.pop(self, None)
        self._phase = _Phase.RUNNING
        self._is_trusted = False
        self._is_continue_due = request.expects_continue
        self._is_last = self._is_last or core.is_draining or not request.is_kept_alive
        self._body = body_of(request.body_bytes, core.limits)
        exchange = self._exchange = Exchange(request, self)
        self._request = None
        if exchange.is_body_whole:
            self._clear_deadline()
        else:
            self._set_deadline(core.limits.body_timeout_s, "body_timeout")
        try:
            core.handler(exchange)
        except Exception:
            core.log_fault("an HTTP handler")
            if exchange.is_begun:
                self.abort("internal")
            else:
                detail = "The server failed; see its log."
                exchange.respond(problem(500, "Internal Server Error", detail))
        if self._phase is _Phase.RUNNING and exchange.is_body_whole and not self._inbox:
            self._resume_reading()  # detects when the client disconnects

    # The body of a request.

    def want_body(self) -> None:
        """See `ExchangeConnection.want_body`."""
        exchange = self._exchange
        if exchange is None or exchange.is_body_whole:
            return
        if self._is_continue_due and not exchange.is_begun:
            self._write(_CONTINUE)
        self._is_continue_due = False
        self._core.queue.add(self)

    def _read_body(self) -> None:
        exchange, inbox = self._exchange, self._inbox
        assert exchange is not None
        had_bytes = len(inbox)
        if not exchange.is_body_whole:
            room = self._core.limits.body_window_bytes - len(exchange.body)
            exchange.body += self._body.take(inbox, room)
            exchange.is_body_whole = self._body.is_whole
            if exchange.is_body_whole and self._due_reason == "body_timeout":
                self._clear_deadline()
            if len(inbox) != had_bytes:
                exchange.on_change()
        if self._exchange is not exchange:
            return  # `on_change` has answered the request
        if exchange.is_body_whole:
            if not inbox:
                self._resume_reading()  # detects when the client disconnects
        elif len(exchange.body) < self._core.limits.body_window_bytes:
            if inbox and len(inbox) != had_bytes:
                self._core.queue.add(self)
            elif self._is_eof:
                self._cancel_exchange()
            else:
                self._resume_reading()

    def _cancel_exchange(self) -> None:
        """Notify the handler that no answer is needed."""
        exchange = self._exchange
        if exchange is not None and not exchange.is_canceled:
            exchange.is_canceled = True
            exchange.on_change()

    # The answer.

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():  # otherwise `connection_lost` follows
            self._transport.write(data)

    def trust(self) -> None:
        """See `ExchangeConnection.trust`."""
        if self._exchange is not None and not self._is_trusted:
            self._is_trusted = True
            self._core.end_request()

    def begin_answer(self, status: int, headers: Headers) -> None:
        """See `ExchangeConnection.begin_answer`."""
        exchange = self._exchange
        if exchange is None:
            return
        self._is_last = self._is_last or self._core.is_draining or not self._can_read_past_body()
        framing = _framing(exchange.request, status, headers)
        if framing == "chunked":
            headers = (*headers, (b"transfer-encoding", b"chunked"))
        elif framing == "close":
            self._is_last = True
        if exchange.request.version == "1.0" and not self._is_last:
            headers = (*headers, (b"connection", b"keep-alive"))  # RFC 9112 9.3
        self._framing = framing
        self._pending_head = head_bytes(status, headers, time.time(), self._is_last)

    def send(self, data: bytes, is_last: bool) -> None:
        """See `ExchangeConnection.send`."""
        if self._exchange is None:
            return
        if self._framing == "none":
            data = b""
        elif self._framing == "chunked":
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"0\r\n\r\n" if is_last else b"")
        data = self._pending_head + data
        self._pending_head = b""
        if data:
            self._write(data)
        if self._phase is _Phase.CLOSED:
            return  # the write exceeded the limit of all unsent bytes
        self._exchange.is_writable = self._is_writable
        if is_last:
            self._finish()

    def answer(self, encoded: bytes) -> None:
        """See `ExchangeConnection.answer`; a request's body is not read, and closes the connection."""
        exchange, core = self._exchange, self._core
        if exchange is None:
            return
        request = exchange.request
        self._is_last = self._is_last or core.is_draining or request.body_bytes != 0
        connection = b""
        if self._is_last:
            connection = b"connection: close\r\n"
        elif request.version == "1.0":
            connection = b"connection: keep-alive\r\n"  # RFC 9112 9.3
        if request.method == "HEAD":
            encoded = encoded[: encoded.index(END_OF_HEAD) + len(END_OF_HEAD)]
        self._write(response_bytes(encoded, time.time(), connection))
        if self._phase is not _Phase.CLOSED:  # the write may have exceeded the limit of all unsent bytes
            self._finish()

    def _can_read_past_body(self) -> bool:
        """Return whether the rest of the request's body can be read and discarded."""
        body = self._body
        if body.is_whole:
            return True
        left = body.left_bytes - len(self._inbox) if isinstance(body, SizedBody) else None
        return left is not None and left <= DISCARD_BYTES_MAX and not self._is_continue_due

    def _finish(self) -> None:
        """After the answer: continue with the next request, or end."""
        core = self._core
        now_ns = perf_counter_ns()
        if core.observe_ns is not None:
            core.observe_ns(now_ns - self._started_ns)
        self._started_ns = now_ns  # of a request that was sent behind this one
        self._exchange = None
        if not self._is_trusted:
            core.end_request()
        if self._is_writable:
            self._clear_deadline()
        if self._is_last or (self._is_eof and not self._inbox):
            self._end("drain" if core.is_draining else "served")
            return
        assert isinstance(self._body, SizedBody) or self._body.is_whole  # otherwise `_is_last` is set
        self._unread = self._body if isinstance(self._body, SizedBody) else None
        self._phase = _Phase.READING
        core.idle[self] = None
        if self._is_writable:
            self._set_deadline(core.limits.idle_timeout_s, "idle")
            if self._inbox or not self._is_reading:
                core.queue.add(self)

    def _refuse(self, error: HttpError) -> None:
        """Answer a request that cannot be served, and end: the next request's start is unknown."""
        self._core.count_refused(error.status, str(error), self.source)
        response = refusal(error)
        exchange = self._exchange
        self._is_last = True
        if exchange is None:
            headers = (
                (b"content-type", response.content_type.encode()),
                (b"content-length", str(len(response.body)).encode()),
            )
            self._write(head_bytes(response.status, headers, time.time(), True) + response.body)
            self._end("bad_request")
        elif exchange.is_begun:
            self.abort("bad_request")
        else:
            exchange.respond(response)
            exchange.is_canceled = True
            exchange.on_change()

    # Closing.

    def drain(self) -> None:
        """See `ConnectionHandle.drain`."""
        self._is_last = True
        idle_s = self._core.limits.drain_idle_s if self._core.is_draining else 0.0
        if self._phase is _Phase.READING:
            if idle_s:
                self._set_deadline(idle_s, "drain")
            else:
                self._end("drain")
        elif self._phase is _Phase.CONNECTING and self._core.is_draining and not idle_s:
            self.abort("drain")

    def abort(self, reason: str) -> None:
        """See `ConnectionHandle.abort` and `ExchangeConnection.abort`."""
        if self._phase is _Phase.CLOSED:
            return
        is_connected = self._phase is not _Phase.CONNECTING
        self._reason = reason
        self._close()
        if is_connected:
            self._transport.abort()
        else:
            with contextlib.suppress(OSError):  # uvloop's abort would wait for the end of the handshake
                self._accepted.shutdown(socket.SHUT_RDWR)

    def on_due(self, now_s: float) -> None:
        """End the connection, because its deadline has passed (called by the timer wheel)."""
        reason, self._due_reason = self._due_reason, ""
        limits = self._core.limits
        if reason in ("idle", "no_request", "drain"):
            self._end(reason)
        elif reason == "header_timeout":
            self._refuse(
                HttpError(408, f"The request's head was not complete within {limits.head_timeout_s:g} s.")
            )
        elif reason == "overloaded":
            self._core.waiting.discard(self)
            self._refuse(HttpError(503, "Too many requests are waiting; nothing was done. Retry later."))
        elif reason == "body_timeout":
            self._cancel_exchange()
            self.abort(reason)
        else:
            self.abort(self._reason if reason == "ending" else reason)

    def _end(self, reason: str) -> None:
        """Close once the peer has read all output, or after a time-out."""
        if self._phase in (_Phase.ENDING, _Phase.CLOSED):
            return
        core = self._core
        self._phase = _Phase.ENDING
        self._reason = reason
        self._inbox.clear()
        core.idle[self] = None
        limits = core.limits
        self._set_deadline(limits.linger_s if self._is_writable else limits.write_timeout_s, "ending")
        if self._is_eof or self._transport.is_closing() or not self._transport.can_write_eof():
            self._transport.close()
            return
        try:
            self._transport.write_eof()
        except OSError:  # asyncio's own transports: the peer has reset the connection
            self.abort(reason)
        else:
            core.queue.add(self)

    def _close(self) -> None:
        core = self._core
        self._phase = _Phase.CLOSED
        self._clear_deadline()
        self._clear_unsent()
        self._inbox.clear()
        if self._exchange is not None:
            if not self._is_trusted:
                core.end_request()
            self._cancel_exchange()
            self._exchange = None
        core.remove(self, self._reason)

    def _clear_unsent(self) -> None:
        self._core.slow.pop(self, None)
        self._core.add_unsent(-self._unsent_bytes)
        self._unsent_bytes = 0

    def _set_deadline(self, timeout_s: float, reason: str) -> None:
        """Replace the deadline: call `on_due` for *reason* after *timeout_s*."""
        self._clear_deadline()
        wheel = self._core.wheel
        self._due_tick = wheel.add(self._core.loop.time() + timeout_s, self)
        self._due_reason = reason

    def _clear_deadline(self) -> None:
        if self._due_reason:
            self._core.wheel.discard(self._due_tick, self)
            self._due_reason = ""


def _framing(request: Request, status: int, headers: Headers) -> str:
    """Return how the end of an answer's body is marked (RFC 9112 6.3)."""
    if request.method == "HEAD" or status in _BODILESS:
        return "none"
    if any(name.lower() == b"content-length" for name, _ in headers):
        return "length"
    return "chunked" if request.version == "1.1" else "close"
