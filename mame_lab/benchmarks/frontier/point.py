"""What the frontier measures, arm by arm."""

from __future__ import annotations

from typing import NamedTuple


class FrontierPoint(NamedTuple):
    """One arm at one cost; None: not measured.

    Attributes:
        arm: see `arms.method_of`.
        asked: the cost that it was solved to, a share of the unmerged model's multiply-adds.
        cost, feature_error, token_error: see `losses.Loss`.
        feature_ratio, token_ratio: the error over that of `arms.REFERENCE`.
        top1, top1_unmerged: share of the images that the linear head hits on merged and on unmerged features.
        top1_change, top1_low, top1_high, top1_p: merged minus unmerged, its interval and test; see `PairedHits`.
        top1_ratio: the share that merging loses over that of `arms.REFERENCE`; None where that loses none.
        setting: the method in full.
        reason: why nothing was measured.
    """

    arm: str
    asked: float
    cost: float | None = None
    feature_error: float | None = None
    feature_ratio: float | None = None
    token_error: float | None = None
    token_ratio: float | None = None
    top1: float | None = None
    top1_unmerged: float | None = None
    top1_change: float | None = None
    top1_low: float | None = None
    top1_high: float | None = None
    top1_p: float | None = None
    top1_ratio: float | None = None
    setting: str = ""
    reason: str = ""
