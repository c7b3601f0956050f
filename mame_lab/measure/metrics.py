"""The metrics of a classifier's outputs on labelled samples: a new one is an entry of `METRICS`.

The result, the table, metrics.csv, W&B and the report follow from the entry. B batch, K classes, M samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclass(frozen=True)
class OutputMetric:
    """A share, or another number that is shown in percent.

    Attributes:
        title: of its row in the table, and of its column in the report.
        make: the metric of a number of classes; it is updated with logits_BK and labels_B. What it computes is bool
            (M,), whether each sample is a hit, for a share that gets its intervals; or else one number.
        meaning: a sentence for the table's legend.
    """

    title: str
    make: Callable[[int], Metric]
    meaning: str = ""


def _hits(k: int) -> Callable[[int], Metric]:
    def make(num_classes: int) -> Metric:
        from mame_lab.measure.hits import Hits

        return Hits(min(k, num_classes))

    return make


def _calibration_error(num_classes: int) -> Metric:
    from torchmetrics.classification import MulticlassCalibrationError
    from torchmetrics.wrappers import LambdaInputTransformer

    error = MulticlassCalibrationError(num_classes, n_bins=15, norm="l1", validate_args=False)
    return LambdaInputTransformer(error, lambda logits_BK: logits_BK.float().softmax(1))


METRICS = {
    "top1": OutputMetric("top-1", _hits(1)),
    "top5": OutputMetric("top-5", _hits(5)),
    "ece": OutputMetric(
        "calibration error",
        _calibration_error,
        "Calibration error: mean distance of confidence from accuracy, over 15 bins of confidence.",
    ),
}
