"""Which source goes to which target: the formulas of MaMe (arXiv 2604.13432, section 3) on similarity matrices.

B batch, N tokens, C channels, T targets, S sources. Every W_BTS has columns (one source each) that sum to 1 or to 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# Weights this close to their mean, relative to it, count as equal to it and stay.
MEAN_TOLERANCE = 1e-4


def cosine_similarity(x_BNC: Tensor, valid_BN: Tensor | None, prefix: int) -> Tensor:
    """Cosine similarity of every target with every source, in float32 at least; -inf for padding.

    Targets are the patch tokens at even places, sources those at odd places.
    """
    unit_BNC = F.normalize(x_BNC.to(torch.promote_types(x_BNC.dtype, torch.float32)), dim=-1)
    similarity_BTS = unit_BNC[:, prefix::2] @ unit_BNC[:, prefix + 1 :: 2].mT
    if valid_BN is None:
        return similarity_BTS
    both_BTS = valid_BN[:, prefix::2, None] & valid_BN[:, None, prefix + 1 :: 2]
    return similarity_BTS.masked_fill(~both_BTS, float("-inf"))


def threshold_weights(similarity_BTS: Tensor, tau: float) -> Tensor:
    """The paper's weights: similarity above `tau`, then what reaches the mean of its column, normalised.

    A column whose entries all equal their mean within `MEAN_TOLERANCE` keeps all of them, equally weighted.
    """
    W_BTS = _normalise_columns((similarity_BTS - tau).relu())
    mean_B1S = 1 / (W_BTS > 0).to(W_BTS.dtype).sum(1, keepdim=True).clamp(min=1)
    return _normalise_columns((W_BTS - (1 - MEAN_TOLERANCE) * mean_B1S).relu())


def budget_weights(similarity_BTS: Tensor, leave: int, tau: float | None) -> Tensor:
    """The `leave` sources of every sample whose best target is closest merge, ties to the lower index.

    Without `tau` a source goes whole to its nearest target; with it, by the paper's weights over the targets above
    `tau`, or to its nearest one where there is none.
    """
    nearest_BTS = _nearest_target(similarity_BTS)
    W_BTS = nearest_BTS
    if tau is not None:
        W_BTS = threshold_weights(similarity_BTS, tau)
        W_BTS = torch.where(W_BTS.sum(1, keepdim=True) > 0, W_BTS, nearest_BTS)
    chosen_BS = _rank(similarity_BTS.amax(1)) < leave
    return W_BTS * chosen_BS[:, None]


def merge_where_all_do(W_BTS: Tensor) -> Tensor:
    """Zero the column of every source that some sample of the batch keeps (the published batch rule)."""
    return W_BTS * (W_BTS.sum(1, keepdim=True) > 0).all(0, keepdim=True)


def _normalise_columns(W_BTS: Tensor) -> Tensor:
    total_B1S = W_BTS.sum(1, keepdim=True)
    return W_BTS / torch.where(total_B1S > 0, total_B1S, 1)


def _nearest_target(similarity_BTS: Tensor) -> Tensor:
    targets_T = torch.arange(similarity_BTS.shape[1], device=similarity_BTS.device)
    return (targets_T[:, None] == similarity_BTS.argmax(1, keepdim=True)).to(similarity_BTS.dtype)


def _rank(score_BS: Tensor) -> Tensor:
    """The place of every score in descending order, ties by index; NaN comes last, so ranks are a permutation."""
    score_BS = score_BS.nan_to_num(nan=float("-inf"))
    index_S = torch.arange(score_BS.shape[1], device=score_BS.device)
    mine_BS1, other_B1S = score_BS[:, :, None], score_BS[:, None]
    ahead_BSS = (other_B1S > mine_BS1) | ((other_B1S == mine_BS1) & (index_S < index_S[:, None]))
    return ahead_BSS.sum(-1)
