"""
Minimizes the wake-up latency of cores and timers while latency is measured.

A virtual machine returns an idle core to the host, and waking the core takes many times as long as a
decision, which would distort measurements of latency. Linux also lets timers fire 50 us late. Sources: PM
QoS, /dev/cpu_dma_latency (Linux, Documentation/power/pm_qos_interface.rst), which cyclictest uses, too;
PR_SET_TIMERSLACK of prctl(2).
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
    Prevent cores from sleeping and make this thread's timers precise, in the block.

    Yields False if the system does not permit the first.
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
