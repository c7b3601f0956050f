"""A share of samples, and how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mame_lab.errors import MameLabError

Z_95 = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


@dataclass(frozen=True)
class Proportion:
    """A share of samples, with the uncertainty that comes from their number."""

    hits: int
    total: int

    def __post_init__(self):
        if self.total == 0 or not 0 <= self.hits <= self.total:
            raise MameLabError(f"{self.hits} hits of {self.total} samples is no proportion: evaluate at least 1 sample")

    @property
    def value(self) -> float:
        return self.hits / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % score interval (Wilson 1927), which holds up near 0 and 1 and for few samples."""
        n, p, z2 = self.total, self.value, Z_95**2
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{percent(self.value)} [{100 * low:.1f}, {100 * high:.1f}]"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
