"""Merging on a grid with one of its choices changed, and ToMe for Stable Diffusion: the arms of `grid_attention`.

B batch, 1 a batch of one, N tokens of the grid, K tokens that remain, T targets, S sources, M windows, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mame_lab.merging import MaMe, ToMeSD, Ward
from mame_lab.merging.grid.assignment import Assignment, Match
from mame_lab.merging.grid.settings import Grid
from mame_lab.merging.grid.windows import part
from mame_lab.merging.matching import squared_distance, ward_similarity
from mame_lab.merging.method import GridMethod
from mame_lab.merging.tokens import Tokens


@dataclass
class EvenWard(Ward):
    """The same share of the sources is removed in every window: no choice over the whole grid."""

    def match(self, x_BNC: Tensor, grid: tuple[int, int]) -> Match:
        match = super().match(x_BNC, grid)
        height, width = (part(side, self.grid.window) for side in grid)
        window_S = match.source_S // grid[1] // height * grid[1] + match.source_S % grid[1] // width
        rank_BS = torch.empty_like(match.score_BS)
        for window in window_S.unique():
            in_window_S = window_S == window
            place_BS = match.score_BS[:, in_window_S].argsort(1, descending=True).argsort(1)
            rank_BS[:, in_window_S] = place_BS.to(rank_BS.dtype) / place_BS.shape[1]
        return match._replace(score_BS=-rank_BS)


@dataclass
class CheckerboardWard(Ward):
    """Every second token is a target, like the dark squares of a chessboard. No windows."""

    def match(self, x_BNC: Tensor, grid: tuple[int, int]) -> Match:
        row_H, column_W = (torch.arange(side, device=x_BNC.device) for side in grid)
        is_source_N = (row_H[:, None] + column_W).flatten() % 2 == 1
        target_T, source_S = _places(~is_source_N), _places(is_source_N)
        score_BS, nearest_BS = _similarity(x_BNC, target_T, source_S).max(1)
        return Match(source_S, target_T[nearest_BS], score_BS)


class Spread(NamedTuple):
    """A merge step as a dense matrix, with the methods of `Assignment`."""

    M_BKN: Tensor

    def merge(self, x_BNC: Tensor) -> Tensor:
        total_BKC = self.M_BKN @ x_BNC.to(self.M_BKN.dtype)
        return (total_BKC / self.M_BKN.sum(2, keepdim=True)).to(x_BNC.dtype)

    def restore(self, x_BKC: Tensor) -> Tensor:
        return (self.M_BKN.mT @ x_BKC.to(self.M_BKN.dtype)).to(x_BKC.dtype)

    def bias_B1K(self) -> Tensor:
        return self.M_BKN.sum(2)[:, None].log()


def spread(plan: Assignment, match: Match, x_1NC: Tensor, temperature: float) -> Spread:
    """A step that removes the same tokens as `plan`: each is spread over all targets by a softmax of the similarity.

    Args:
        plan: a step of one sample.
        match: what it was made from.
        x_1NC: the tokens.
        temperature: of the softmax; Ward's similarity is at most 1.
    """
    tokens = x_1NC.shape[1]
    is_target_N = torch.ones(tokens, dtype=torch.bool, device=x_1NC.device).index_fill(0, match.source_S, False)
    target_T, stays_K = _places(is_target_N), plan.index_BK[0]
    W_1TS = (_similarity(x_1NC, target_T, match.source_S) / temperature).softmax(1)
    M_NN = W_1TS.new_zeros(tokens, tokens)
    M_NN[target_T[:, None], match.source_S] = W_1TS[0]
    M_NN[:, stays_K] = torch.eye(tokens, dtype=M_NN.dtype, device=M_NN.device)[:, stays_K]
    return Spread(M_NN[None, stays_K])


class Arm(NamedTuple):
    """One way to merge on a grid.

    Attributes:
        method: which target each source is nearest to, and whether attention is proportional.
        on_keys: it compares the attention keys, mean over heads, in place of the tokens.
        keep_norm: how much of the norm that a mean loses a merged token gets back, 0 to 1 (geometrically).
        temperature: of `spread`; None: a source merges whole into its nearest target.
    """

    method: GridMethod
    on_keys: bool = False
    keep_norm: float = 0.0
    temperature: float | None = None


REFERENCE = "ward"
ARMS = {
    "tomesd": Arm(ToMeSD()),
    "tomesd, proportional": Arm(ToMeSD(prop_attn=True)),
    REFERENCE: Arm(Ward()),
    "not proportional": Arm(Ward(prop_attn=False)),
    "windows of 8": Arm(Ward(grid=Grid(window=8))),
    "no windows": Arm(Ward(grid=Grid(window=0))),
    "evenly in each window": Arm(EvenWard()),
    "checkerboard, no windows": Arm(CheckerboardWard()),
    "cosine": Arm(MaMe()),
    "on keys": Arm(Ward(), on_keys=True),
    "half of the norm back": Arm(Ward(), keep_norm=0.5),
    "spread, no windows": Arm(Ward(grid=Grid(window=0)), temperature=0.01),
}


def _similarity(x_BNC: Tensor, target_T: Tensor, source_S: Tensor) -> Tensor:
    """Ward's similarity of tokens of size 1 over the whole grid, (B, T, S)."""
    size_BN1 = torch.ones_like(x_BNC[..., :1])
    tokens = Tokens(x_BNC, x_BNC, size_BN1, 0, partition=(target_T, source_S))
    return ward_similarity(squared_distance(x_BNC, tokens).neg_(), 1 / size_BN1, tokens)


def _places(is_one_N: Tensor) -> Tensor:
    return is_one_N.nonzero()[:, 0]
