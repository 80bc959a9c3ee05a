"""
Lets a process and the cores wake up at once while latency is measured.

A virtual machine's core that has nothing to do is given back to the host, and to wake it takes many times
as long as a decision; so does any measurement of latency that does not say which of the two it measures.
And Linux lets a timer fire 50 us late, to wake up once for several. Sources: PM QoS, /dev/cpu_dma_latency
(Linux, Documentation/power/pm_qos_interface.rst), which cyclictest holds, too; PR_SET_TIMERSLACK of prctl(2).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

WAKE_UP_LATENCY = "/dev/cpu_dma_latency"
_PR_SET_TIMERSLACK, _PR_GET_TIMERSLACK = 29, 30


@contextmanager
def awake() -> Iterator[bool]:
    """
    Ask that no core sleeps deeper than a poll and that this thread's timers are prompt, in the block.

    False = the system does not let us ask the first.
    """
    with _prompt_timers():
        try:
            asked = os.open(WAKE_UP_LATENCY, os.O_WRONLY)
        except OSError:
            yield False
            return
        try:
            os.write(asked, struct.pack("i", 0))
            yield True
        finally:
            os.close(asked)


@contextmanager
def _prompt_timers() -> Iterator[None]:
    prctl = ctypes.CDLL(None).prctl
    slack_ns = prctl(_PR_GET_TIMERSLACK, 0, 0, 0, 0)
    prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_TIMERSLACK, slack_ns, 0, 0, 0)
