"""The token bucket in exact fractions: the oracle that integer buckets are held against."""

from __future__ import annotations

from fractions import Fraction


class ExactBucket:
    """A token bucket in exact fractions, refilled continuously: what the integers must never exceed."""

    def __init__(self, tokens_per_us: Fraction, burst: int, now_us: int) -> None:
        """Begin full."""
        self.tokens_per_us = tokens_per_us
        self.burst = burst
        self.tokens = Fraction(burst)
        self.now_us = now_us

    def at(self, now_us: int) -> Fraction:
        """The tokens there at *now_us*."""
        self.tokens = min(Fraction(self.burst), self.tokens + self.tokens_per_us * (now_us - self.now_us))
        self.now_us = now_us
        return self.tokens

    def change(self, tokens_per_us: Fraction, burst: int) -> None:
        """Another limit: used tokens, rounded up, stay used; never more than the new burst."""
        used = -((self.tokens - self.burst) // 1)
        self.tokens_per_us, self.burst = tokens_per_us, burst
        self.tokens = Fraction(burst - min(used, burst))
