"""Every bound of the Redis store in one place, with its reason."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


class Backoff:
    """Waits that double from the first to the longest, each shortened by up to half at random."""

    def __init__(
        self, first_s: float, max_s: float, random_part: Callable[[], float] = random.random
    ) -> None:
        """Begin with the first wait; *random_part* is uniform in 0 ... 1."""
        self._first_s = first_s
        self._max_s = max_s
        self._random_part = random_part
        self._next_s = first_s

    def next_s(self) -> float:
        """The wait before the next attempt."""
        wait_s = self._next_s
        self._next_s = min(2 * wait_s, self._max_s)
        return wait_s * (0.5 + 0.5 * self._random_part())

    def reset(self) -> None:
        """Begin again: an attempt went well."""
        self._next_s = self._first_s


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """
    Bounds of the store's waits, queues and caches.

    The defaults hold together: a node that stops answering is noticed by the first overdue call, given
    up on by the third, and connected to anew after `link_timeout_s`; back-off and probes are short
    enough that a node which is back is used again within a second.
    """

    call_timeout_s: float = 0.05
    """A call not answered within it counts as a failure of the node."""
    link_timeout_s: float = 0.4
    """A call not answered within it: the connection is given up. Replies come in order, so one that is
    lost blocks all that follow."""
    connect_timeout_s: float = 0.5
    """Connecting, TLS, AUTH and loading the scripts, together."""
    discovery_timeout_s: float = 0.25
    """Asking one Sentinel or one Cluster node."""
    keepalive_s: float = 1.0
    """An idle connection is probed that often, so that readiness is the truth without traffic."""
    close_timeout_s: float = 1.0
    """Stopping."""

    in_flight_max: int = 2
    """Batches on their way to one node: one that Redis works on, one on the wire. The next one gathers,
    and the longer it does the more equal takes it merges."""
    early_takes_min: int = 16
    """So many takes leave before their turn ends: a batch of its own adds little to what they cost, and a
    turn that reads that much is a long one."""
    groups_max: int = 64
    """Entries of one batch: about 0.2 ms of Redis, which serves nobody else meanwhile. Larger ones save
    little (docs/adr/0005), and while Redis works on one batch we can prepare the next."""
    keys_max: int = 512
    """Keys of one batch; Lua's stack holds 8,000 values."""
    queue_takes_max: int = 8_192
    """Takes that wait to be sent to one node; more are refused as overloaded."""
    reply_bytes_max: int = 1_048_576
    """Bytes of a reply that does not end."""

    breaker_failures_max: int = 3
    """Failures of a node in a row after which nobody waits for it."""
    probe_after_s: float = 0.2
    """The wait before a node that failed is probed."""
    backoff_first_s: float = 0.05
    """The wait after the first failed attempt to connect; doubled by each one that follows ..."""
    backoff_max_s: float = 0.4
    """... up to this."""
    steady_s: float = 1.0
    """A connection that we gave up after this long was a good one: the next attempt has no back-off."""
    reopen_interval_s: float = 0.01
    """A lost connection is reopened at once, but connects begin at least this far apart."""

    denials_max: int = 65_536
    """Integrations known to be empty."""
    denial_s_max: float = 1.0
    """A refusal is repeated from memory no longer than that, however long the bucket stays empty: the
    server's clock may step, an administrator may reset the bucket."""
    compiled_max: int = 65_536
    """Bucket sets kept in the form that the script takes."""

    def backoff(self) -> Backoff:
        """The waits between attempts to connect."""
        return Backoff(self.backoff_first_s, self.backoff_max_s)
