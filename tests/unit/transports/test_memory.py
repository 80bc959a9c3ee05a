"""When the heap is trimmed: once for a burst of closed connections, and never for a few."""

from __future__ import annotations

from sidecar.transports.memory import CONNECTION_BYTES, TRIM_BYTES, TRIM_DELAY_S, FreedMemory, trim_heap
from sidecar.transports.wheel import TimerWheel
from tests.unit.transports.rig import ManualLoop

BURST = TRIM_BYTES // CONNECTION_BYTES


class Trims:
    """A loop, freed memory on it, and how often the heap was trimmed."""

    def __init__(self) -> None:
        """None yet."""
        self.loop = ManualLoop()
        self.count = 0
        self.freed = FreedMemory(TimerWheel(self.loop), self._trim)

    def _trim(self) -> None:
        self.count += 1

    def close_connections(self, count: int) -> None:
        """Note what *count* closed connections have freed."""
        for _ in range(count):
            self.freed.add(CONNECTION_BYTES, self.loop.time())


def test_freed__a_burst_is_trimmed_once() -> None:
    """However many connections close within the delay; the next burst is trimmed again."""
    trims = Trims()
    for expected in (1, 2):
        trims.close_connections(3 * BURST)
        trims.loop.advance(TRIM_DELAY_S + 0.1)
        assert trims.count == expected
    assert trims.loop.timers == 0


def test_freed__a_few_connections_cost_no_trim() -> None:
    """Below the bound there is no timer, either."""
    trims = Trims()
    trims.close_connections(BURST - 1)
    trims.loop.advance(10 * TRIM_DELAY_S)
    assert (trims.count, trims.loop.timers) == (0, 0)


def test_trim__can_be_called_at_any_time() -> None:
    """Whatever the C library is."""
    trim_heap()
