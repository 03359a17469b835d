"""Scales of the pictures: linear, logarithmic, or linear near zero and logarithmic beyond."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "log", "symlog"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Maps values in [low, high] to pixels in [left, right]. `unit` is where symlog turns from linear to log."""

    kind: Kind
    low: float
    high: float
    unit: float
    left: float
    right: float

    def at(self, value: float) -> float:
        """The pixel of `value`; values outside the axis sit on its ends."""
        low, high, here = (self._bend(v) for v in (self.low, self.high, min(max(value, self.low), self.high)))
        return self.left + (here - low) / (high - low) * (self.right - self.left)

    def _bend(self, value: float) -> float:
        if self.kind == "linear":
            return value
        if self.kind == "log":
            return math.log10(value)
        return math.copysign(math.log10(1 + abs(value) / self.unit), value)

    def ticks(self, most: int) -> list[float]:
        """At most about `most` round values on the axis, ascending."""
        if self.kind == "linear":
            return _linear_ticks(self.low, self.high, most)
        low = self.low if self.kind == "log" else self.unit
        zero = [0.0] if self.kind == "symlog" and self.low <= 0 <= self.high else []
        bottom, top = math.floor(math.log10(low)) - 1, math.ceil(math.log10(self.high))
        for factors in ((1, 2, 5), (1, 3), (1,)):
            steps = [f * 10.0**d for d in range(bottom, top + 1) for f in factors]
            found = [s for s in steps if low * (1 - 1e-9) <= s <= self.high * (1 + 1e-9)]
            if len(found) <= most:
                break
        else:
            found = found[:: math.ceil(len(found) / most)]
        return zero + found


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def score_axis(values: Sequence[float], typical: float, left: float, right: float) -> Axis:
    """An axis for scores: linear while they stay within ten times the typical honest one, symlog otherwise."""
    low, high = min(values), max(values)
    if low >= 0 and typical > 0 and high > 10 * typical:
        # Twelve decades are enough for a page, and a unit near the smallest float would overflow.
        unit = 10.0 ** max(math.floor(math.log10(typical)), math.floor(math.log10(high)) - 12)
        return Axis(kind="symlog", low=0.0, high=high * 1.15, unit=unit, left=left, right=right)
    bottom = 0.0 if 0 <= low <= 0.5 * high else low
    room = (high - bottom) * 0.05 or abs(high) * 0.5 or 1.0
    start = bottom if bottom == 0 and high > 0 else bottom - room
    return Axis(kind="linear", low=start, high=high + room, unit=1.0, left=left, right=right)


def size_axis(values: Sequence[float], left: float, right: float) -> Axis:
    """A logarithmic axis for sizes of zero or more, at least one of them positive; zero sits on the left end."""
    positive = [v for v in values if v > 0]
    return Axis(kind="log", low=min(positive) / 2.5, high=max(positive) * 2.5, unit=1.0, left=left, right=right)
