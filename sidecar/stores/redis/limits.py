"""Every limit of the Redis store, with its reason."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


class Backoff:
    """Exponential back-off: waits that double up to a maximum, each shortened by up to half at random."""

    def __init__(
        self, first_s: float, max_s: float, random_part: Callable[[], float] = random.random
    ) -> None:
        """Start with *first_s*; *random_part* is uniform in 0 ... 1."""
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
        """Start again with the first wait, after an attempt succeeded."""
        self._next_s = self._first_s


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """
    Bounds of the store's waits, queues and caches.

    The defaults depend on each other: the first overdue call shows that a node does not answer, the third
    opens its breaker, and after `link_timeout_s` the connection is reopened; back-off and probes are short
    enough that a recovered node is used again within a second.
    """

    call_timeout_s: float = 0.05
    """A call without a reply within this time counts as a failure of the node."""
    link_timeout_s: float = 0.4
    """A call without a reply within this time ends the connection: replies come in order, so one that is
    lost blocks all that follow."""
    connect_timeout_s: float = 0.5
    """Total time to connect, complete TLS and AUTH, and load the scripts."""
    discovery_timeout_s: float = 0.25
    """Time for a query of one Sentinel or Cluster node."""
    keepalive_s: float = 1.0
    """Interval of probes on an idle connection, so that readiness is correct without traffic."""
    close_timeout_s: float = 1.0
    """Time to close."""

    in_flight_max: int = 2
    """Batches in flight to one node: Redis processes one, the other is on the wire. Meanwhile the next batch
    collects takes and merges equal ones."""
    early_takes_min: int = 16
    """Number of takes at which a batch is sent before the loop turn ends, as a lone take is: the cost of one
    more batch is small against that of its takes, and a turn of that size is long."""
    groups_max: int = 64
    """Entries of one batch: about 0.2 ms in Redis, which serves no other client meanwhile. Larger batches
    save little (docs/adr/0005), and the sidecar prepares the next batch while Redis processes one."""
    keys_max: int = 512
    """Keys of one batch; Lua's stack holds 8,000 values."""
    queue_takes_max: int = 8_192
    """Takes queued for one node; more are refused as overloaded."""
    reply_bytes_max: int = 1_048_576
    """Size of an incomplete reply at which the connection is ended."""

    breaker_failures_max: int = 3
    """Consecutive failures of a node that open its circuit breaker."""
    probe_after_s: float = 0.2
    """The wait before a failed node is probed."""
    backoff_first_s: float = 0.05
    """The wait after the first failed attempt to connect; doubles with each further failure."""
    backoff_max_s: float = 0.4
    """The longest wait between attempts to connect."""
    steady_s: float = 1.0
    """If a connection lasted this long before it was aborted, the next attempt has no back-off."""
    reopen_interval_s: float = 0.01
    """A lost connection is reopened at once, but connects begin at least this far apart."""

    denials_max: int = 65_536
    """Cached refusals of empty buckets."""
    denial_s_max: float = 1.0
    """The longest time that a refusal is cached, even if the bucket stays empty for longer: the server's
    clock may step, or an administrator may reset the bucket."""
    compiled_max: int = 65_536
    """Cached bucket sets in the encoding of the script."""

    def backoff(self) -> Backoff:
        """The waits between attempts to connect."""
        return Backoff(self.backoff_first_s, self.backoff_max_s)
