"""Which target each source of a grid is nearest to, by the similarity of a method, within windows of the grid.

Two rows of four tokens in windows of 2 are two windows: [0 1 4 5] and [2 3 6 7]. The first of each is a target, the
others are sources, and source_R is [1 4 5 3 6 7].

B batch, N tokens of the grid, W windows of the grid, M = B x W, P tokens of a window, T targets and S sources of a
window, R sources of the grid, C channels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from mame_lab.merging.grid.assignment import Match
from mame_lab.merging.matching import without_padding
from mame_lab.merging.tokens import Tokens

# How many times longer or shorter than asked for a window may be, so that all windows of a side are equal.
FAR = 2.5


def match(similarity: Callable[[Tokens], Tensor], x_BNC: Tensor, grid: tuple[int, int], window: int) -> Match:
    """The nearest target of every source in its window.

    Args:
        similarity: how alike every target and every source are, (M, T, S); any value for padding.
        x_BNC: the tokens of the grid, row by row.
        grid: its rows and columns.
        window: see `Grid`.
    """
    batch, device = x_BNC.shape[0], x_BNC.device
    height, width = (part(side, window) for side in grid)
    targets_T, sources_S = partition(height, width, device)
    here_N = torch.arange(grid[0] * grid[1], device=device)
    place_WP = windows(here_N[None, :, None] + 1, grid, height, width)[..., 0] - 1  # -1 for padding.
    padded = grid[0] % height > 0 or grid[1] % width > 0
    valid_MP = (place_WP >= 0).repeat(batch, 1) if padded else None
    x_MPC = windows(x_BNC, grid, height, width)
    size_MP1 = torch.ones(1, 1, 1, device=device).expand(*x_MPC.shape[:2], 1)
    tokens = Tokens(x_MPC, x_MPC, size_MP1, 0, valid_MP, partition=(targets_T, sources_S), windows=len(place_WP))
    score_MS, nearest_MS = without_padding(similarity(tokens), tokens).max(1)
    place_BWT = place_WP[:, targets_T].expand(batch, -1, -1)
    nearest_BWS = place_BWT.gather(2, nearest_MS.unflatten(0, (batch, -1)))
    source_R, nearest_BR, score_BR = place_WP[:, sources_S].flatten(), nearest_BWS.flatten(1), score_MS.view(batch, -1)
    if padded:
        real_R = (source_R < 0).sort(stable=True).indices[: len(here_N) - targets_of(*grid)]
        source_R, nearest_BR, score_BR = source_R[real_R], nearest_BR[:, real_R], score_BR[:, real_R]
    return Match(source_R, nearest_BR, score_BR)


def windows(x_BNC: Tensor, grid: tuple[int, int], height: int, width: int) -> Tensor:
    """The tokens (M, P, C) of each window, row by row, the windows of a sample one after the other.

    Those at the end of a side are padded with 0 where it is no multiple of their length.
    """
    x_BHWC, below, right = x_BNC.unflatten(1, grid), -grid[0] % height, -grid[1] % width
    if below or right:
        x_BHWC = pad(x_BHWC, (0, 0, 0, right, 0, below))
    x_BRhCwC = x_BHWC.unflatten(2, (-1, width)).unflatten(1, (-1, height))
    return x_BRhCwC.transpose(2, 3).reshape(-1, height * width, x_BNC.shape[2])


def partition(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The places of the targets (even rows and columns) and of the sources (the others) in a window."""
    is_source_hw = torch.ones(height, width, dtype=torch.bool, device=device)
    is_source_hw[::2, ::2] = False
    order_P = is_source_hw.flatten().sort(stable=True).indices
    targets = targets_of(height, width)
    return order_P[:targets], order_P[targets:]


def targets_of(height: int, width: int) -> int:
    """How many targets a window or a grid has: one in each cell of 2 x 2, begun ones counted."""
    return math.ceil(height / 2) * math.ceil(width / 2)


def part(side: int, window: int) -> int:
    """The length of the windows along a side of the grid, about that of a window; one of 0 cuts nothing.

    It is the even divisor of the side that is nearest, as a ratio, unless that is `FAR` from it. Then it is the least
    even length of as many windows as come nearest, of which the last is padded; a single one is not. Windows begin at
    even places, and so add no targets to those of the whole grid.
    """
    if not window:
        return side
    divisors = [length for length in range(2, side + 1, 2) if side % length == 0]
    nearest = min(divisors, key=lambda length: abs(math.log(length / window)), default=0)
    if 1 / FAR <= nearest / window <= FAR:
        return nearest
    count = max(round(side / window), 1)
    return side if count == 1 else 2 * math.ceil(side / (2 * count))
