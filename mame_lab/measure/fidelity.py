"""How far a merged model strays from the same weights unmerged, without labels, and k-NN for backbones without a head.

Shapes: B batch, K classes, C features; N samples in the bank, M queries, k neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mame_lab.errors import MameLabError

QUERY_CHUNK = 256


class Distance(NamedTuple):
    """What `Fidelity` computes. Without a classifier `agreement` and `kl` are None."""

    agreement: tuple[int, int] | None  # samples with the same top-1 class, all samples
    kl: float | None  # KL(unmerged || merged), nats, mean over samples
    feature_error: float  # mean |merged - unmerged| over mean |unmerged - mean(unmerged)|


class Fidelity(Metric):
    """Distance of a merged model's outputs from those of the same weights unmerged, over all samples and processes.

    The feature error measures the shift by the spread of the unmerged features: it is 1 where every feature becomes the
    mean of all, and about 1.4 (the root of 2) where it becomes that of another sample. Equal
    outputs give an agreement of 1 and exactly 0 for the rest. Computed in float64 wherever the device has it.
    """

    full_state_update = False
    agrees_B: list[Tensor]
    kl_B: list[Tensor]
    shift_B: list[Tensor]
    unmerged_BC: list[Tensor]

    def __init__(self):
        super().__init__()
        for state in ("agrees_B", "kl_B", "shift_B", "unmerged_BC"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(
        self,
        merged_logits_BK: Tensor | None,
        unmerged_logits_BK: Tensor | None,
        merged_feature_BC: Tensor,
        unmerged_feature_BC: Tensor,
    ) -> None:
        """One batch of both models on the same samples; logits are None where there is no classifier."""
        self.shift_B.append((wide(merged_feature_BC) - wide(unmerged_feature_BC)).norm(dim=1))
        self.unmerged_BC.append(unmerged_feature_BC.detach())
        if merged_logits_BK is None or unmerged_logits_BK is None:
            return
        merged_BK, unmerged_BK = (wide(x).log_softmax(dim=1) for x in (merged_logits_BK, unmerged_logits_BK))
        self.kl_B.append(F.kl_div(merged_BK, unmerged_BK, reduction="none", log_target=True).sum(dim=1))
        self.agrees_B.append(merged_logits_BK.argmax(dim=1) == unmerged_logits_BK.argmax(dim=1))

    def compute(self) -> Distance:
        shift_B, unmerged_BC = _gathered(self.shift_B), _gathered(self.unmerged_BC)
        spread = (unmerged_BC - unmerged_BC.mean(dim=0)).norm(dim=1).mean()
        feature_error = (shift_B.mean() / spread).item() if shift_B.any() else 0.0
        if len(self.kl_B) == 0:
            return Distance(None, None, feature_error)
        agrees_B = dim_zero_cat(self.agrees_B)
        return Distance((int(agrees_B.sum()), len(agrees_B)), _gathered(self.kl_B).mean().item(), feature_error)


def wide(x: Tensor) -> Tensor:
    """float64, which Apple's GPUs lack."""
    return x.detach().to(torch.float32 if x.device.type == "mps" else torch.float64)


def _gathered(state: list[Tensor]) -> Tensor:
    """All samples in float64."""
    return dim_zero_cat(state).cpu().double()


def knn_hits(
    bank_NC: Tensor,
    bank_labels_N: Tensor,
    query_MC: Tensor,
    query_labels_M: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """hits_M2: whether each query's class is that of the most votes, and whether it is one of the five with the most.

    By the weighted k-NN classifier of DINO (Caron et al. 2021, arXiv 2104.14294).

    A query gets the class with the most votes of its k nearest features in the bank by cosine similarity; a vote weighs
    exp(similarity / temperature). A class without a vote is never a hit, also where fewer than five got one.

    Raises:
        MameLabError: the bank is smaller than k.
    """
    if len(bank_NC) < k:
        raise MameLabError(
            f"k-NN with k={k} has only {len(bank_NC)} labelled samples: use more of them, or a smaller k"
        )
    bank_CN = F.normalize(bank_NC.float()).T
    hits = []
    for chunk_MC, labels_M in zip(query_MC.split(QUERY_CHUNK), query_labels_M.split(QUERY_CHUNK), strict=True):
        similarity_Mk, neighbour_Mk = (F.normalize(chunk_MC.float()) @ bank_CN).topk(k)
        # The nearest weighs 1: the same ranks, and no overflow at low temperatures.
        weight_Mk = ((similarity_Mk - similarity_Mk[:, :1]) / temperature).exp()
        votes_MK = weight_Mk.new_zeros(len(chunk_MC), num_classes)
        votes_MK.scatter_add_(1, bank_labels_N[neighbour_Mk], weight_Mk)
        vote_M5, class_M5 = votes_MK.topk(min(5, num_classes))
        hit_M5 = (class_M5 == labels_M[:, None]) & (vote_M5 > 0)
        hits.append(torch.stack([hit_M5[:, 0], hit_M5.any(1)], 1))
    return torch.cat(hits)
