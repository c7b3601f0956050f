"""Two classifiers on the same samples: by how much their accuracy differs, and how sure that is.

M samples, S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, bootstrap


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
        return float(binomtest(self.gained, self._differing).pvalue) if self._differing else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference, given the number of samples that one alone hits (Clopper and Pearson 1934).

        It leaves 0 out where p is below 0.05, and only there.
        """
        if not self._differing:
            return 0.0, 0.0
        share = binomtest(self.gained, self._differing).proportion_ci()
        low, high = ((2 * end - 1) * self._differing / self.total for end in (share.low, share.high))
        return low, high

    @property
    def _differing(self) -> int:
        return self.gained + self.lost


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
        change_M = hits_SM.mean(0) - beside_SM.mean(0)
        found = bootstrap((change_M,), np.mean, method="percentile", rng=0, batch=1000).confidence_interval
        return cls(float(change_M.mean()), float(found.low), float(found.high))
