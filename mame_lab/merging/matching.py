"""Which source goes to which target: similarities, and the formulas of MaMe (arXiv 2604.13432, section 3) on them.

B batch, N tokens, C channels, T targets, S sources. Every W_BTS has columns (one source each) that sum to 1 or to 0.
"""

import torch
from torch import Tensor

from mame_lab.merging.tokens import Tokens

# Weights this close to their mean, relative to it, count as equal to it and stay.
MEAN_TOLERANCE = 1e-4


def cosine_similarity(y_BNC: Tensor, tokens: Tokens) -> Tensor:
    """Cosine similarity of every target with every source, in float32 at least; -inf for padding.

    Args:
        y_BNC: what is compared: the tokens or something of theirs.
        tokens: says which are targets, sources and padding.
    """
    y_BNC = _precise(y_BNC)
    norm_BN1 = torch.linalg.vector_norm(y_BNC, dim=-1, keepdim=True).clamp(min=1e-12)
    (target_BTC, source_BSC), (target_BT1, source_BS1) = tokens.split(y_BNC), tokens.split(norm_BN1)
    return _without_padding(target_BTC @ source_BSC.mT / (target_BT1 * source_BS1.mT), tokens)


def ward_similarity(y_BNC: Tensor, tokens: Tokens) -> Tensor:
    """1 minus the Ward cost of merging every target with every source, in float32 at least; -inf for padding.

    The Ward cost is what a merge adds to the sum of squared distances of all tokens from the tokens that stand for
    them, s_t s_s / (s_t + s_s) |y_t - y_s|^2, here over the mean square of all. For two tokens of size 1 and mean norm
    the similarity is their cosine.

    Args:
        y_BNC: what is compared: the tokens or something of theirs.
        tokens: says which are targets, sources and padding, and their sizes.
    """
    y_BNC = _precise(y_BNC)
    square_BN1 = torch.linalg.vector_norm(y_BNC, dim=-1, keepdim=True).square()
    target_BTC, source_BSC = tokens.split(y_BNC)
    target_BT1, source_BS1 = tokens.split(square_BN1)
    distance_BTS = torch.baddbmm(target_BT1 + source_BS1.mT, target_BTC, source_BSC.mT, alpha=-2)
    target_BT1, source_BS1 = tokens.split(tokens.size_BN1)
    factor_BTS = target_BT1 * source_BS1.mT / (target_BT1 + source_BS1.mT)
    return _without_padding(1 - distance_BTS * factor_BTS / tokens.mean(square_BN1), tokens)


def threshold_weights(similarity_BTS: Tensor, tau: float) -> Tensor:
    """The paper's weights: similarity above `tau`, then what reaches the mean of its column, normalised.

    A column whose entries all equal their mean within `MEAN_TOLERANCE` keeps all of them, equally weighted.
    """
    W_BTS = _normalise_columns((similarity_BTS - tau).relu())
    mean_B1S = 1 / (W_BTS > 0).to(W_BTS.dtype).sum(1, keepdim=True).clamp(min=1)
    return _normalise_columns((W_BTS - (1 - MEAN_TOLERANCE) * mean_B1S).relu())


def nearest_weights(similarity_BTS: Tensor) -> Tensor:
    """Each source goes whole to its most similar target, the lower index where two are."""
    targets_T = torch.arange(similarity_BTS.shape[1], device=similarity_BTS.device)
    return (targets_T[:, None] == similarity_BTS.argmax(1, keepdim=True)).to(similarity_BTS.dtype)


def closest(similarity_BTS: Tensor, leave: int) -> Tensor:
    """True for the `leave` sources of every sample whose best target is closest, ties to the lower index."""
    score_BS = similarity_BTS.amax(1).nan_to_num(nan=float("-inf"))
    index_S = torch.arange(score_BS.shape[1], device=score_BS.device)
    mine_BS1, other_B1S = score_BS[:, :, None], score_BS[:, None]
    ahead_BSS = (other_B1S > mine_BS1) | ((other_B1S == mine_BS1) & (index_S < index_S[:, None]))
    return ahead_BSS.sum(-1) < leave


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _without_padding(similarity_BTS: Tensor, tokens: Tokens) -> Tensor:
    if tokens.valid_BN is None:
        return similarity_BTS
    target_BT1, source_BS1 = tokens.split(tokens.valid_BN[..., None])
    return similarity_BTS.masked_fill(~(target_BT1 & source_BS1.mT), float("-inf"))


def _normalise_columns(W_BTS: Tensor) -> Tensor:
    total_B1S = W_BTS.sum(1, keepdim=True)
    return W_BTS / torch.where(total_B1S > 0, total_B1S, 1)
