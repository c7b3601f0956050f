"""A merge step on a grid, in which each removed token merges whole into one target, and its inverse.

Of eight tokens in two rows of four, the targets are 0 and 2. Let the `Match` be source_S [1 3 4 5 6 7], nearest_BS
[0 2 0 2 2 2] and score_BS [.9 .1 .8 .2 .7 .3]. With r = 3, 1 and 4 merge into 0 and 6 into 2: index_BK is [0 2 3 5 7],
source_BR [1 4 6], row_BR [0 0 1], place_BN [0 0 1 2 0 3 1 4], and the sizes are [3 2 1 1 1].

B batch, N tokens of the grid, S sources, R tokens that are removed, K = N - R tokens that remain, C channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mame_lab.merging.plan import take


class Match(NamedTuple):
    """Which target each source of a grid is nearest to.

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
        source_BR: the tokens that are removed.
        row_BR: the token after the step that each of them is merged into.
        place_BN: the token after the step that each token before it continues as, or is merged into.
        size_BK1: how many tokens each one is merged from.
    """

    index_BK: Tensor
    source_BR: Tensor
    row_BR: Tensor
    place_BN: Tensor
    size_BK1: Tensor

    def merge(self, x_BNC: Tensor) -> Tensor:
        """The mean of the parts of each token; a token that nothing is merged into keeps its value to the bit."""
        dtype = self.size_BK1.dtype  # Half precision would lose what a sum of many holds.
        total_BKC = take(x_BNC, self.index_BK).to(dtype)
        row_BR = self.row_BR + torch.arange(x_BNC.shape[0], device=x_BNC.device)[:, None] * total_BKC.shape[1]
        source_BRC = take(x_BNC, self.source_BR).to(dtype)
        total_BKC = total_BKC.flatten(0, 1).index_add(0, row_BR.flatten(), source_BRC.flatten(0, 1)).view_as(total_BKC)
        return (total_BKC / self.size_BK1).to(x_BNC.dtype)

    def restore(self, x_BKC: Tensor) -> Tensor:
        """MaRe: every token of the grid, x_BNC, a removed one as the token that it was merged into."""
        return take(x_BKC, self.place_BN)

    def bias_B1K(self) -> Tensor:
        """What proportional attention adds to the logits of each key: the log of its size."""
        return self.size_BK1.log().mT


def assign(match: Match, tokens: int, r: int) -> Assignment:
    """The step that removes the `r` sources of every sample that are nearest to their targets.

    Args:
        match: which target each source is nearest to.
        tokens: N.
        r: R, at most S; of equally near ones those of lower index are removed.
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
