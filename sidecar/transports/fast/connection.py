"""
One client connection: reads from the socket, writes once per read, and closes.

Reading stops while the peer does not read our output, so a peer cannot make buffers grow. Later answers of
many calls in one loop turn are sent in one write.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from time import perf_counter_ns
from typing import Final, cast

from sidecar.transports.fast.authority import AuthorityFilter
from sidecar.transports.fast.closed import CLOSED_CONNECTION, CLOSED_TRANSPORT
from sidecar.transports.fast.core import Core
from sidecar.transports.fast.engine import (
    ConnectionClosed,
    DenialOfServiceError,
    Event,
    H2Error,
    NGH2Error,
    PingAcknowledged,
    PingReceived,
    SettingsAcknowledged,
    SettingsReceived,
    WindowUpdated,
    goaway_frame,
    open_http2,
)
from sidecar.transports.fast.lifetime import FLOOD_GRACE_S, Act, Lifetime, LifetimeStep, Phase
from sidecar.transports.fast.policing import Policing
from sidecar.transports.fast.read_scheduler import LATE_READ_BYTES, READ_BYTES
from sidecar.transports.fast.streams import Streams

_DRAIN_PING: Final = b"draining"
_KEEPALIVE_PING: Final = b"anyone??"

_FLOOD_CODES: Final = (H2Error.ENHANCE_YOUR_CALM, H2Error.INTERNAL_ERROR)
"""The error codes of ngh2 when one of its own rate limits is exceeded."""


class Connection(asyncio.BufferedProtocol):
    """
    A connection from accept to close. Implements `StreamsConnection` and `ConnectionHandle`.

    After `_is_ended` is set, input is read and ignored, so that a TCP reset does not destroy the last output.
    The transport is closed when the peer closes, or after a second. `streams` are its open streams.
    """

    __slots__ = (
        "__weakref__",
        "_core",
        "_filter",
        "_http2",
        "_is_connected",
        "_is_ended",
        "_is_flush_pending",
        "_is_reading",
        "_is_slow",
        "_is_waiting",
        "_lifetime",
        "_peer",
        "_policing",
        "_reason",
        "_tick",
        "_transport",
        "_unread",
        "_unwritable_since_s",
        "streams",
    )

    def __init__(self, core: Core, peer: str = "") -> None:
        """Create a connection after `core.admit(peer)`; `connection_made` begins to send."""
        now_s = core.loop.time()
        self._core = core
        self._peer = peer
        self._http2 = open_http2(core.limits, core.h2_options)
        self._filter: AuthorityFilter | None = AuthorityFilter(core.limits)
        self._policing = Policing(core.limits, now_s)
        self._lifetime = Lifetime(core.limits, now_s, core.random.uniform(-0.1, 0.1))
        self.streams = Streams(core, self._http2, self._policing, self)
        self._transport = cast(asyncio.Transport, None)  # until connection_made
        self._reason = ""
        self._tick = 0
        self._is_connected = False
        self._is_ended = False
        self._is_reading = True
        self._is_flush_pending = False
        self._is_slow = False
        self._is_waiting = False
        self._unread = b""
        self._unwritable_since_s: float | None = None

    # The socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send our SETTINGS (RFC 9113 3.4); close a TLS connection without ALPN h2."""
        core = self._core
        self._is_connected = True
        self._transport = cast(asyncio.Transport, transport)
        core.connections.add(self)
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None and ssl_object.selected_alpn_protocol() != "h2":
            self._abort("handshake")  # RFC 9113 3.3
            return
        self._transport.set_write_buffer_limits(high=core.limits.write_buffer_bytes_max // 4)
        self._tick = core.wheel.add(core.loop.time() + core.check_interval_s, self)
        self._guarded(self.flush)
        if core.is_draining:
            self.drain("drain")

    def fail_handshake(self) -> None:
        """Release the connection after a TLS handshake failed or was canceled by a drain."""
        if self._is_connected:
            self.abort()  # the handshake has just succeeded: `connection_lost` follows
        else:
            self._reason = "handshake"
            self.connection_lost(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the shared buffer, which is free again when `buffer_updated` returns."""
        scheduler = self._core.scheduler
        return scheduler.late_buffer if self._is_slow else scheduler.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Handle the data and write the answers, or queue the data for a later turn."""
        if self._is_ended:
            return
        core = self._core
        scheduler = core.scheduler
        now_s = self._lifetime.read_s = core.loop.time()
        is_late = False
        data = scheduler.read_buffer[:nbytes]
        if now_s != scheduler.now_s:
            scheduler.begin(now_s)
        elif scheduler.clock() >= scheduler.ends_s:
            is_late = True
        is_behind = nbytes > LATE_READ_BYTES and scheduler.is_crowded
        if is_late or is_behind or self._is_slow or self._unread:
            self._unread += data
            self._wait(is_late=is_late)
        else:
            self._handle(data, now_s)

    def _handle(self, data: bytes | memoryview, now_s: float) -> None:
        """Handle *data* and write the answers."""
        core = self._core
        lifetime = self._lifetime
        self.streams.now_s = now_s
        self.streams.read_ns = perf_counter_ns()
        self._is_flush_pending = True
        try:
            if self._filter is not None:
                data = self._filter.feed(data)
                if self._filter.is_done:
                    self._filter = None
            self._http2.receive_data(data)
            events = self._http2.events()
            if events:
                lifetime.silent_since_s = None
                self.streams.handle(events)
            elif not lifetime.read_incomplete(now_s):
                self.kill("header_timeout", H2Error.ENHANCE_YOUR_CALM)
            if self.streams.has_output:
                self.flush()
            else:
                self._is_flush_pending = False
        except Exception as error:
            self.on_fault(error)
        core.after_read_batch()

    def eof_received(self) -> None:
        """Close: the peer reads no further output."""

    def pause_writing(self) -> None:
        """Stop reading, because the peer does not read."""
        self._unwritable_since_s = self._core.loop.time()
        self._set_reading()

    def resume_writing(self) -> None:
        """Read and write again."""
        self._unwritable_since_s = None
        self._set_reading()
        self.flush_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel running calls, release all resources and count the reason."""
        core = self._core
        self._is_ended = True
        self._unread = b""
        held_bytes = core.held.of(self)
        core.held.set(self, self._peer, 0)
        core.connections.discard(self)
        core.wheel.discard(self._tick, self)
        self.streams.close()
        self._break_cycles()
        core.release(self._peer, self._reason or "peer", held_bytes)
        core.on_connection_closed()

    def _break_cycles(self) -> None:
        """
        Break reference cycles, so that the memory is freed immediately.

        A TLS connection has 50 KiB or more in OpenSSL, which the garbage collector does not count: thousands
        of closed connections would accumulate.
        """
        self._transport = CLOSED_TRANSPORT
        self.streams.detach(CLOSED_CONNECTION)

    def _set_reading(self) -> None:
        is_behind = self.streams.has_backlog or bool(self._unread)
        wanted = self._is_ended or (self._unwritable_since_s is None and not is_behind)
        if wanted != self._is_reading and not self._transport.is_closing():
            self._is_reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # One turn of the loop.

    def flush(self) -> None:
        """Write everything that is queued."""
        self._is_flush_pending = False
        if self._is_ended:
            return
        http2 = self._http2
        if self._unwritable_since_s is None:
            output = self.streams.take_output()
            if output:
                self._transport.write(output)
                self.streams.observe_answered()
            events = http2.events()
            if events:
                self.streams.handle(events)
        queued_bytes = http2.queued_body_size()
        if queued_bytes or self._is_slow:
            self._weigh(queued_bytes)

    @property
    def queued_body_bytes(self) -> int:
        """Bytes of answers that wait for the peer to read."""
        return self._http2.queued_body_size()

    @property
    def inspects_authority(self) -> bool:
        """Whether the next requests' authorities are still inspected."""
        return self._filter is not None

    def _weigh(self, queued_bytes: int) -> None:
        """Update the memory that the peer holds; *queued_bytes* are answers that it does not read."""
        self._is_slow = queued_bytes > 0
        if queued_bytes > self._core.limits.write_buffer_bytes_max:
            self._abort("slow_reader")
            return
        held_bytes = queued_bytes + self.streams.open_bytes
        if self._unwritable_since_s is not None:
            held_bytes += self._transport.get_write_buffer_size()
        self._core.held.set(self, self._peer, held_bytes)

    def shed(self, held_bytes: int) -> None:
        """Close now, because this peer holds too much memory, *held_bytes*."""
        self._core.freed.add(held_bytes, self._core.loop.time())
        self._abort("memory_limit")

    def flush_soon(self) -> None:
        """Flush at the end of this turn, unless a flush is already scheduled."""
        if not self._is_flush_pending:
            self._is_flush_pending = True
            self._core.turn.write_soon(self)

    def flush_pending(self) -> None:
        """Flush, unless a flush has happened since `flush_soon`."""
        if self._is_flush_pending:
            self._guarded(self.flush)

    def resume_soon(self) -> None:
        """Handle the rest of the input in a later turn."""
        self._wait()

    def _wait(self, *, is_late: bool = False) -> None:
        self._set_reading()
        if not self._is_waiting:
            self._is_waiting = True
            self._core.scheduler.wait(self, is_slow=self._is_slow, is_late=is_late)

    def resume(self) -> None:
        """Handle a part of the waiting input (called by `ReadScheduler`)."""
        self._is_waiting = False
        self._guarded(self._resume)

    def _resume(self) -> None:
        now_s = self._core.loop.time()
        if self.streams.has_backlog:
            self.streams.now_s = now_s
            self._is_flush_pending = True
            self.streams.resume()
            self.flush()
            self._core.after_read_batch()
        else:
            size = LATE_READ_BYTES if self._core.scheduler.is_crowded else READ_BYTES
            part, self._unread = self._unread[:size], self._unread[size:]
            self._handle(part, now_s)
        if self._unread:
            self._wait()
        else:
            self._set_reading()

    def _guarded(self, step: Callable[[], None]) -> None:
        if self._is_ended:
            return
        try:
            step()
        except Exception as error:
            self.on_fault(error)

    def on_fault(self, error: Exception) -> None:
        """End the connection after an error of ngh2 or an internal error."""
        if isinstance(error, NGH2Error):
            self._on_engine_error(error)
            return
        self._core.log_fault("a connection")
        self._end("internal", goaway_frame(self.streams.last_stream_id, H2Error.INTERNAL_ERROR))

    def _on_engine_error(self, error: NGH2Error) -> None:
        """End the connection with a GOAWAY made by hand, because ngh2 has failed and sends none."""
        is_flood = isinstance(error, DenialOfServiceError)
        code = H2Error.ENHANCE_YOUR_CALM if is_flood else H2Error.PROTOCOL_ERROR
        self._end("flood" if is_flood else "protocol_error", goaway_frame(self.streams.last_stream_id, code))

    # Events of the connection.

    def on_control(self, event: Event) -> None:
        """Handle an event that does not belong to a stream."""
        streams = self.streams
        kind = type(event)
        is_within_limits = True
        if kind is WindowUpdated:
            is_within_limits = self._policing.window_update(streams.seen, streams.replies + streams.frames)
        elif kind is SettingsReceived:
            is_within_limits = self._policing.settings(streams.now_s)
        elif kind is SettingsAcknowledged:
            self._lifetime.has_settings_ack = True
        elif kind is PingReceived:
            sent = streams.replies + streams.frames + streams.statuses
            if not self._policing.ping(streams.now_s, sent):
                self.kill("too_many_pings", H2Error.ENHANCE_YOUR_CALM, b"too_many_pings")
        elif kind is PingAcknowledged:
            if cast(PingAcknowledged, event).opaque_data == _DRAIN_PING:
                self._go_away()
        elif kind is ConnectionClosed:
            self._on_http2_closed(cast(ConnectionClosed, event))
        if not is_within_limits:
            self.kill("flood", H2Error.ENHANCE_YOUR_CALM)

    def _on_http2_closed(self, event: ConnectionClosed) -> None:
        """End after the last stream of a drain or a protocol error; ngh2 has queued the GOAWAY."""
        if event.error_code == H2Error.NO_ERROR:
            self._end(self._reason or "peer")
        else:
            self._end("flood" if event.error_code in _FLOOD_CODES else "protocol_error")

    # Closing.

    def drain(self, reason: str, cut_at_s: float = float("inf")) -> None:
        """See `ConnectionHandle.drain`."""
        if not self._is_ended and self._lifetime.drain(self._core.loop.time(), cut_at_s):
            self._reason = reason
            self._guarded(self._announce)

    def _announce(self) -> None:
        """First step of a drain: announce it without refusing streams; the PING's ack starts the second."""
        self._http2.send_shutdown_notice()
        self._http2.ping(_DRAIN_PING)
        self.flush_soon()

    def _go_away(self) -> None:
        """Second step of a drain: name the last stream; the client has seen the first step."""
        if self._lifetime.phase is Phase.ANNOUNCED:
            self._lifetime.go_away()
            self.streams.end_exchanges()
            self._http2.send_goaway(H2Error.NO_ERROR)
            self.flush_soon()

    def drain_flooding_peer(self) -> None:
        """
        Finish running calls, refuse new streams, then close, because the peer ends too many streams early.

        Gentler than `kill`, because a proxy whose calls time out looks like a rapid-reset attack.
        """
        if not self._is_ended and self._lifetime.phase in (Phase.SERVING, Phase.ANNOUNCED):
            self._lifetime.go_away(self._core.loop.time() + FLOOD_GRACE_S)
            self._reason = "flood"
            self._http2.send_goaway(H2Error.ENHANCE_YOUR_CALM)
            self.flush_soon()

    def kill(self, reason: str, code: H2Error, debug: bytes = b"") -> None:
        """Send the queued answers and GOAWAY with *code*, then close."""
        if self._is_ended:
            return
        try:
            self._http2.send_goaway(code, debug_data=debug)
            last_output = self.streams.take_output()
        except NGH2Error:
            last_output = goaway_frame(self.streams.last_stream_id, code)
        self._end(reason, last_output)

    def cut(self) -> bool:
        """See `ConnectionHandle.cut`."""
        cut_off = self._transport.get_write_buffer_size() > 0
        if not self._is_ended:
            cut_off |= self.streams.has_unanswered or self.queued_body_bytes > 0
            last_output = b""
            with contextlib.suppress(NGH2Error):
                # Take the answers first: terminating drops the queue.
                last_output = self.streams.take_output()
                self._http2.terminate_connection(H2Error.NO_ERROR)
                last_output += self._http2.data_to_send()
            self._end(self._reason or "drain", last_output)
        self._transport.close()
        return cut_off

    def abort(self) -> None:
        """See `ConnectionHandle.abort`."""
        self._abort(self._reason or "drain")

    def _end(self, reason: str, last_output: bytes = b"") -> None:
        """Write the last output and wait for the peer to close."""
        if self._is_ended:
            return
        if not last_output:
            with contextlib.suppress(NGH2Error):
                last_output = self.streams.take_output()
        self._is_ended = True
        self._reason = reason
        self.streams.close()
        self._lifetime.linger(self._core.loop.time())
        transport = self._transport
        if not transport.is_closing():
            transport.write(last_output)
            if transport.can_write_eof():
                transport.write_eof()
            self._set_reading()

    def _abort(self, reason: str) -> None:
        if not self._is_ended:
            self._is_ended = True
            self._reason = reason
            self.streams.close()
        self._transport.abort()

    # Time.

    def on_due(self, now_s: float) -> None:
        """Check all time-outs of the connection (called by the timer wheel)."""
        core = self._core
        self._tick = core.wheel.add(now_s + core.check_interval_s, self)
        if not self._is_ended:
            self._guarded(self._check)
        elif self._lifetime.may_end_lingering(now_s, self._transport.get_write_buffer_size()):
            self._transport.abort()

    def _check(self) -> None:
        now_s = self._core.loop.time()
        since_s = self._unwritable_since_s
        if since_s is not None and now_s - since_s >= self._core.limits.write_timeout_s:
            self._abort("slow_reader")
            return
        streams = self.streams
        streams.check(now_s)
        self._weigh(self.queued_body_bytes)
        if self._is_ended:
            return
        self._do(self._lifetime.next_step(now_s, len(streams.calls), streams.seen, streams.last_stream_id))
        self.flush()

    def _do(self, step: LifetimeStep) -> None:
        if step.act is Act.PING:
            self._http2.ping(_KEEPALIVE_PING)
        elif step.act is Act.DRAIN:
            self.drain(step.reason, step.cut_at_s)
        elif step.act is Act.GO_AWAY:
            self._go_away()
        elif step.act is Act.CUT:
            self.cut()
        elif step.act is Act.KILL:
            self.kill(step.reason, H2Error(step.code))
        elif step.act is Act.ABORT:
            self._abort(step.reason)
