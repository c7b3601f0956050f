"""Which samples a model classifies rightly, in the top k; and what is kept of its features for a k-NN classifier.

B batch, C features, K classes; M samples.
"""

from __future__ import annotations

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Hits(Metric):
    """hits_M: of each sample whether the label is among the `k` most likely classes."""

    full_state_update = False
    hits_B: list[Tensor]

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.add_state("hits_B", [], dist_reduce_fx="cat")

    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        self.hits_B.append((logits_BK.topk(self.k).indices == labels_B[:, None]).any(1))

    def compute(self) -> Tensor:
        return dim_zero_cat(self.hits_B)


class Features(Metric):
    """All features (M, C) and their labels (M,)."""

    full_state_update = False
    features_BC: list[Tensor]
    labels_B: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("features_BC", [], dist_reduce_fx="cat")
        self.add_state("labels_B", [], dist_reduce_fx="cat")

    def update(self, features_BC: Tensor, labels_B: Tensor) -> None:
        self.features_BC.append(features_BC)
        self.labels_B.append(labels_B)

    def compute(self) -> tuple[Tensor, Tensor]:
        return dim_zero_cat(self.features_BC), dim_zero_cat(self.labels_B)
