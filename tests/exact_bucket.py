"""The token bucket in exact fractions, and the bound on what it may admit: the oracles of integer buckets."""

from __future__ import annotations

from fractions import Fraction


class ExactBucket:
    """
    A token bucket in exact fractions, refilled continuously: what the integers must never exceed.

    `used` are the tokens missing from the burst; `owed` are all that were used and have not come back, also
    those that a lowered burst has cut off.
    """

    def __init__(self, tokens_per_us: Fraction, burst: int, now_us: int) -> None:
        """Begin full."""
        self.tokens_per_us = tokens_per_us
        self.burst = burst
        self.used = self.owed = Fraction(0)
        self.now_us = now_us

    def at(self, now_us: int) -> Fraction:
        """The tokens there at *now_us*."""
        refilled = self.tokens_per_us * (now_us - self.now_us)
        self.used = max(Fraction(0), self.used - refilled)
        self.owed = max(Fraction(0), self.owed - refilled)
        self.now_us = now_us
        return self.burst - self.used

    def take(self, tokens: int) -> None:
        """Use *tokens*."""
        self.used += tokens
        self.owed += tokens

    def change(self, tokens_per_us: Fraction, burst: int, *, rounds_up: bool = True) -> None:
        """Another quota: what was used stays used, in whole tokens if *rounds_up* and the rate changes."""
        if rounds_up and tokens_per_us != self.tokens_per_us:
            self.used = Fraction(-(-self.used // 1))
            self.owed = Fraction(-(-self.owed // 1))
        kept = self.owed if burst > self.burst else self.used
        self.used = min(kept, Fraction(burst))
        self.tokens_per_us, self.burst = tokens_per_us, burst


class Admissions:
    """
    What was admitted when, and under which quotas: never more than the bound in any window.

    In every window of T at most the largest burst in force within it + the highest rate in force within
    it * T.
    """

    def __init__(self) -> None:
        """Nothing was admitted yet."""
        self._events: list[tuple[int, int, Fraction, int]] = []

    def add(self, now_us: int, tokens: int, tokens_per_us: Fraction, burst: int) -> None:
        """Admitted *tokens* at *now_us*, not before the last, under a quota that was in force then."""
        self._events.append((now_us, tokens, tokens_per_us, burst))

    def check(self) -> None:
        """Look at every window that begins and ends with an event; no other one admits more in less time."""
        for first, (began_us, _, _, _) in enumerate(self._events):
            admitted = burst = 0
            rate = Fraction(0)
            for now_us, tokens, rate_then, burst_then in self._events[first:]:
                admitted += tokens
                rate, burst = max(rate, rate_then), max(burst, burst_then)
                assert admitted <= burst or admitted <= burst + rate * (now_us - began_us)
