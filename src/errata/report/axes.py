"""Axes of hand-drawn charts: round ticks, and where a value lies."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to the drawing's units, with the values that have ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    @classmethod
    def linear(cls, low: float, high: float, start: float, end: float) -> Scale:
        """From a round number at or below ``low`` to one at or above ``high``."""
        step = _step((high - low) or abs(high) or 1.0)
        first, last = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), math.floor(low / step) + 1)
        ticks = tuple(round(index * step, 12) for index in range(first, last + 1))
        return cls(ticks[0], ticks[-1], start, end, ticks)

    @classmethod
    def powers(cls, low: float, high: float, start: float, end: float) -> Scale:
        """Logarithmic, between powers of ten; both values are above 0."""
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        every = max(1, math.ceil((last - first) / 5))
        ticks = tuple(10.0**power for power in range(first, last + 1, every))
        return cls(10.0**first, 10.0**last, start, end, ticks, logarithmic=True)

    def at(self, value: float) -> float:
        """Where a value lies; what is outside lies on the edge."""
        clipped = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(clipped / self.low) / math.log(self.high / self.low)
        else:
            share = (clipped - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _step(span: float) -> float:
    """A round distance between ticks: 1, 2 or 5 times a power of ten, for four to eight of them."""
    power = 10.0 ** math.floor(math.log10(span))
    return next(power * part for part in (0.2, 0.5, 1.0, 2.0) if span / (power * part) <= 6)
