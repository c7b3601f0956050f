"""Which source goes to which target: similarities, and the formulas of MaMe (arXiv 2604.13432, section 3) on them.

B batch, N tokens, P patch tokens, C channels, T targets, S sources. Every W_BTS has columns (one source each) that sum
to 1 or to 0. `tokens` says which are targets, sources and padding; y_BNC is what is compared, such as the tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, threshold

from mame_lab.merging.tokens import Tokens, precise

# Weights this close to their mean, relative to it, count as equal to it and are kept.
MEAN_TOLERANCE = 1e-4


def cosine_similarity(y_BNC: Tensor, tokens: Tokens) -> Tensor:
    """Cosine similarity of every target with every source, in float32 at least."""
    target_BTC, source_BSC = tokens.split(unit(y_BNC))
    return target_BTC @ source_BSC.mT


def ward_similarity(distance_BTS: Tensor, lightness_BP1: Tensor, tokens: Tokens) -> Tensor:
    """Minus the Ward cost of merging every target with every source.

    The Ward cost is what a merge adds to the weighted sum of squared distances of all tokens from their merged
    representatives: w_t w_s / (w_t + w_s) times their squared distance, which is that distance over 1/w_t + 1/w_s.

    Args:
        distance_BTS: minus the squared distance of every target and every source; it is overwritten.
        lightness_BP1: 1 over how much each patch token weighs, such as its size.
    """
    target_BT1, source_BS1 = tokens.halves(lightness_BP1)
    return distance_BTS.div_(target_BT1 + source_BS1.mT)


def uncorrelated(given: Sequence[Tensor], tokens: Tokens, scale: float) -> Tensor:
    """`scale` times 1 minus the correlation of every target with every source over their channels, (B, T, S).

    That is half the mean squared difference of their channels, where each token has mean 0 and deviation 1. Of several
    y_BNC that are given it is the product. In float32 at least; what has no deviation is uncorrelated with all.
    """
    normal = [_normal(y_BNC) for y_BNC in given]
    one_111, product_BTS = normal[0].new_ones(1, 1, 1), None
    for y_BNC in normal:
        (target_BTC, source_BSC), alike = tokens.split(y_BNC), -scale / y_BNC.shape[-1]
        apart_BTS = torch.baddbmm(one_111, target_BTC, source_BSC.mT, beta=scale, alpha=alike)
        product_BTS, scale = apart_BTS if product_BTS is None else product_BTS.mul_(apart_BTS), 1.0
    assert product_BTS is not None
    return product_BTS


def _normal(y_BNC: Tensor) -> Tensor:
    """Tokens whose channels have mean 0 and deviation 1, or are all 0."""
    y_BNC = y_BNC.to(precise(y_BNC))
    return layer_norm(y_BNC, y_BNC.shape[-1:], eps=torch.finfo(y_BNC.dtype).tiny)


def squared_distance(y_BNC: Tensor, tokens: Tokens) -> Tensor:
    """|y_t - y_s|^2 of every target and every source over the mean square of all, in float32 at least: (B, T, S)."""
    y_BNC = y_BNC.to(precise(y_BNC))
    square_BN1 = torch.linalg.vector_norm(y_BNC, dim=-1, keepdim=True).square()
    target_BTC, source_BSC = tokens.split(y_BNC)
    target_BT1, source_BS1 = tokens.split(square_BN1)
    distance_BTS = torch.baddbmm(target_BT1, target_BTC, source_BSC.mT, alpha=-2).add_(source_BS1.mT)
    return distance_BTS.div_(tokens.mean(square_BN1).clamp(min=torch.finfo(y_BNC.dtype).tiny))


def attraction(attention_BN1: Tensor, tokens: Tokens, of_attention: float, of_size: float) -> Tensor:
    """How readily every target and every source merge by MCTF (arXiv 2403.10030); -inf for padding.

    The paper divides attention and size by their least; that is one factor for all pairs.

    Args:
        attention_BN1: how much each token is attended to.
        of_attention, of_size: the temperatures.
    """
    score_BTS = (1 + cosine_similarity(tokens.x_BNC, tokens)) / 2
    for y_BN1, temperature in ((attention_BN1, of_attention), (tokens.size_BN1, of_size)):
        target_BT1, source_BS1 = tokens.split(y_BN1)
        score_BTS = score_BTS * (target_BT1 * source_BS1.mT) ** (-1 / temperature)
    return without_padding(score_BTS, tokens)


def patch_mean(y_BPP: Tensor, tokens: Tokens) -> Tensor:
    """The mean of each row over the patch tokens of its sample: (B, P), -inf for padding."""
    if tokens.valid_BN is None:
        return y_BPP.mean(2)
    valid_BP = tokens.valid_BN[:, tokens.prefix :]
    mean_BP = (y_BPP * valid_BP[:, None]).sum(2) / valid_BP.sum(1, keepdim=True)
    return mean_BP.masked_fill(~valid_BP, float("-inf"))


def threshold_weights(similarity_BTS: Tensor, best_BS: Tensor, tau: float) -> Tensor:
    """The paper's weights: similarity above `tau`, then what reaches the mean of its column, normalised.

    A column whose entries all equal their mean within `MEAN_TOLERANCE` keeps all of them, equally weighted. One without
    an entry above `tau` keeps what equals its largest one, `best_BS`.
    """
    precision = torch.finfo(best_BS.dtype)
    least_BS = (best_BS - precision.eps**0.75).clamp(-2.0, float(tau))
    V_BTS = (similarity_BTS - least_BS[:, None]).relu()
    mean_B1S = V_BTS.sum(1, keepdim=True) / V_BTS.count_nonzero(1)[:, None].clamp(min=1)
    W_BTS = torch.sub(V_BTS, mean_B1S, alpha=1 - MEAN_TOLERANCE).relu()
    return W_BTS / W_BTS.sum(1, keepdim=True).clamp(min=precision.tiny)


def highest(score_BN: Tensor, number: int) -> Tensor:
    """The places (B, R) of the R highest scores of every sample, the highest first, ties to the lower index."""
    if torch.compiler.is_exporting():  # ONNX has no stable sort.
        return _sorted_by_comparison(score_BN)[:, :number]
    return score_BN.sort(dim=1, descending=True, stable=True).indices[:, :number]


def _sorted_by_comparison(score_BN: Tensor) -> Tensor:
    score_BN = score_BN.nan_to_num(nan=float("inf"))
    here_N = torch.arange(score_BN.shape[1], device=score_BN.device)
    mine_BN1, other_B1N = score_BN[:, :, None], score_BN[:, None]
    ahead_BNN = (other_B1N > mine_BN1) | ((other_B1N == mine_BN1) & (here_N < here_N[:, None]))
    rank_BN = ahead_BNN.sum(-1)
    return torch.zeros_like(rank_BN).scatter(1, rank_BN, here_N.expand_as(rank_BN))


def unit(y_BNC: Tensor) -> Tensor:
    """Tokens of norm 1, in float32 at least; those of no norm, which have no direction and no gradient, are 0."""
    y_BNC = y_BNC.to(precise(y_BNC))
    norm_BN1 = torch.linalg.vector_norm(y_BNC, dim=-1, keepdim=True)
    return y_BNC / threshold(norm_BN1, 1e-12, float("inf"))


def without_padding(similarity_BTS: Tensor, tokens: Tokens) -> Tensor:
    """The similarity of every target and every source, -inf where one of them is padding."""
    if tokens.valid_BN is None:
        return similarity_BTS
    target_BT1, source_BS1 = tokens.split(tokens.valid_BN[..., None])
    return similarity_BTS.masked_fill(~(target_BT1 & source_BS1.mT), float("-inf"))
