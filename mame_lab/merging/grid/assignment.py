"""A merge step on a grid, in which each token that leaves goes whole to one target, and its inverse.

B batch, N tokens of the grid, S sources, R tokens that leave, K = N - R tokens that remain, C channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mame_lab.merging.plan import take


class Match(NamedTuple):
    """Where the sources of a grid would go.

    Attributes:
        source_S: the places of the sources in the grid, the same in all samples.
        nearest_BS: the place in the grid of each one's nearest target.
        score_BS: how near that is; higher is nearer.
    """

    source_S: Tensor
    nearest_BS: Tensor
    score_BS: Tensor


class Assignment(NamedTuple):
    """Which tokens of a grid become which; built by `assign`. All have size 1 before the step.

    Attributes:
        index_BK: the token before the step that each token after it continues, in the order of the grid.
        source_BR: the tokens that leave.
        row_BR: the token after the step that each of them becomes a part of.
        place_BN: the token after the step that each token before it became, or became a part of.
        size_BK1: how many tokens each one stands for.
    """

    index_BK: Tensor
    source_BR: Tensor
    row_BR: Tensor
    place_BN: Tensor
    size_BK1: Tensor

    def merge(self, x_BNC: Tensor) -> Tensor:
        """The mean of the tokens that each one stands for; a token that stands for itself alone is kept to the bit."""
        dtype = self.size_BK1.dtype  # Half precision would lose what a sum of many holds.
        total_BKC = take(x_BNC, self.index_BK).to(dtype)
        row_BR = self.row_BR + torch.arange(x_BNC.shape[0], device=x_BNC.device)[:, None] * total_BKC.shape[1]
        source_BRC = take(x_BNC, self.source_BR).to(dtype)
        total_BKC = total_BKC.flatten(0, 1).index_add(0, row_BR.flatten(), source_BRC.flatten(0, 1)).view_as(total_BKC)
        return (total_BKC / self.size_BK1).to(x_BNC.dtype)

    def restore(self, x_BKC: Tensor) -> Tensor:
        """MaRe: every token of the grid as the token that stands for it, x_BNC."""
        return take(x_BKC, self.place_BN)

    def bias_B1K(self) -> Tensor:
        """What proportional attention adds to the logits of each key: the log of its size."""
        return self.size_BK1.log().mT


def assign(match: Match, tokens: int, r: int) -> Assignment:
    """The step in which the `leave` sources of every sample leave that are nearest to their targets.

    Args:
        match: where the sources would go.
        tokens: N.
        r: R, at most S; of equally near ones those of lower index leave.
    """
    order_BR = match.score_BS.sort(dim=1, descending=True, stable=True).indices[:, :r]
    source_BR = match.source_S[order_BR]
    batch, device = order_BR.shape[0], order_BR.device
    stays_BN = torch.ones(batch, tokens, dtype=torch.bool, device=device).scatter_(1, source_BR, 0)
    place_BN = stays_BN.cumsum(1) - 1
    here_BN = torch.arange(tokens, device=device).expand(batch, -1)
    slot_BN = place_BN.where(stays_BN, tokens - r)
    index_BK = place_BN.new_zeros(batch, tokens - r + 1).scatter_(1, slot_BN, here_BN)[:, :-1]
    row_BR = place_BN.gather(1, match.nearest_BS.gather(1, order_BR))
    one_BR = torch.ones(row_BR.shape, dtype=torch.promote_types(match.score_BS.dtype, torch.float32), device=device)
    size_BK = one_BR.new_ones(index_BK.shape).scatter_add_(1, row_BR, one_BR)
    return Assignment(index_BK, source_BR, row_BR, place_BN.scatter(1, source_BR, row_BR), size_BK[..., None])
