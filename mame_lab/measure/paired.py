"""Two classifiers on the same samples: by how much their accuracy differs, and how sure that is.

M samples, S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mame_lab.errors import MameLabError


@dataclass(frozen=True)
class Change:
    """By how much a share of the same samples differs, merged minus unmerged.

    Attributes:
        value: the difference.
        low, high: its 95 % interval, see `PairedHits.interval`.
        p: McNemar's, see `PairedHits`.
    """

    value: float
    low: float
    high: float
    p: float

    def __post_init__(self) -> None:
        if not (-1 <= self.low <= self.value <= self.high <= 1 and 0 <= self.p <= 1):
            raise MameLabError(f"{self.value} in [{self.low}, {self.high}], p {self.p}, is no change: evaluate again")

    def __str__(self) -> str:
        value, low, high = (f"{round(100 * number, 1) + 0:+.1f}" for number in (self.value, self.low, self.high))
        return f"{value} points [{low}, {high}]"


@dataclass(frozen=True)
class PairedHits:
    """Hits of a merged and of the unmerged model on the same samples.

    The test is the exact one of McNemar (1947): were both equally good, each sample that one of them alone hits would
    be as likely hit by the other.

    Attributes:
        both: samples that both hit.
        gained, lost: that merged alone hits; that unmerged alone hits.
        total: all samples.
    """

    both: int
    gained: int
    lost: int
    total: int

    @classmethod
    def count(cls, merged_M: np.ndarray, unmerged_M: np.ndarray) -> PairedHits:
        """From whether each model hits each sample."""
        counts = (merged_M & unmerged_M, merged_M & ~unmerged_M, ~merged_M & unmerged_M)
        return cls(*(int(of.sum()) for of in counts), len(merged_M))

    @property
    def merged(self) -> float:
        """Share of the samples."""
        return (self.both + self.gained) / self.total

    @property
    def unmerged(self) -> float:
        """Share of the samples."""
        return (self.both + self.lost) / self.total

    @property
    def difference(self) -> float:
        """Merged minus unmerged."""
        return -self.net_loss / self.total

    @property
    def net_loss(self) -> int:
        """By how many fewer samples merged hits."""
        return self.lost - self.gained

    @property
    def p(self) -> float:
        """Two-sided, exact."""
        return float(self._test().pvalue) if self._differing else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference, given the number of samples that one alone hits (Clopper and Pearson 1934).

        It leaves 0 out where p is below 0.05, and only there.
        """
        if not self._differing:
            return 0.0, 0.0
        share = self._test().proportion_ci()
        low, high = ((2 * end - 1) * self._differing / self.total for end in (share.low, share.high))
        return low, high

    @property
    def change(self) -> Change:
        return Change(self.difference, *self.interval, self.p)

    @property
    def _differing(self) -> int:
        return self.gained + self.lost

    def _test(self) -> Any:
        from scipy.stats import binomtest

        return binomtest(self.gained, self._differing)


class MeanChange(NamedTuple):
    """By how much the accuracy of one model differs from that of another on the same samples, mean over seeds.

    Attributes:
        change: first minus second.
        low, high: its 95 % interval by the paired bootstrap of the samples (Efron and Tibshirani 1993), each with all
            its seeds: what other samples would give, not what other seeds would.
    """

    change: float
    low: float
    high: float

    @classmethod
    def between(cls, hits_SM: np.ndarray, beside_SM: np.ndarray) -> MeanChange:
        """From whether each model hits each sample."""
        from scipy.stats import bootstrap

        change_M = hits_SM.mean(0) - beside_SM.mean(0)
        found = bootstrap((change_M,), np.mean, method="percentile", rng=0, batch=1000).confidence_interval
        return cls(float(change_M.mean()), float(found.low), float(found.high))
