"""Which target each source of a grid is nearest to, by the similarity of a method, within windows of the grid.

B batch, N tokens of the grid, M windows of the batch, P tokens of a window, T targets and S sources of a window,
C channels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mame_lab.merging.assignment import Match
from mame_lab.merging.tokens import Tokens


def match(similarity: Callable[[Tokens], Tensor], x_BNC: Tensor, grid: tuple[int, int], window: int) -> Match:
    """The nearest target of every source in its window.

    Args:
        similarity: how alike every target and every source are, (M, T, S).
        x_BNC: the tokens of the grid, row by row.
        grid: its rows and columns.
        window: see `Grid`.
    """
    height, width = (part(side, window) for side in grid)
    targets_T, sources_S = partition(height, width, x_BNC.device)
    place_MP = windows(torch.arange(grid[0] * grid[1], device=x_BNC.device)[None, :, None], grid, height, width)[..., 0]
    x_MPC = windows(x_BNC, grid, height, width)
    size_MP1 = torch.ones(1, 1, 1, device=x_BNC.device).expand(*x_MPC.shape[:2], 1)
    tokens = Tokens(x_MPC, x_MPC, size_MP1, 0, partition=(targets_T, sources_S), windows=len(place_MP))
    score_MS, nearest_MS = similarity(tokens).max(1)
    place_BMT = place_MP[:, targets_T].expand(len(x_BNC), -1, -1)
    nearest_BMS = place_BMT.gather(2, nearest_MS.unflatten(0, (len(x_BNC), -1)))
    return Match(place_MP[:, sources_S].flatten(), nearest_BMS.flatten(1), score_MS.view(len(x_BNC), -1))


def windows(x_BNC: Tensor, grid: tuple[int, int], height: int, width: int) -> Tensor:
    """The tokens (M, P, C) of each window, row by row, the windows of a sample one after the other."""
    x_BRhCwC = x_BNC.unflatten(1, (grid[0] // height, height, grid[1] // width, width))
    return x_BRhCwC.transpose(2, 3).reshape(-1, height * width, x_BNC.shape[2])


def partition(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The places of the targets (even rows and columns) and of the sources (the others) in a window."""
    is_source_hw = torch.ones(height, width, dtype=torch.bool, device=device)
    is_source_hw[::2, ::2] = False
    order_P = is_source_hw.flatten().sort(stable=True).indices
    targets = math.ceil(height / 2) * math.ceil(width / 2)
    return order_P[:targets], order_P[targets:]


def part(side: int, window: int) -> int:
    """The even divisor of a grid's side that is nearest, as a ratio, to a window's; an odd side is not cut.

    So windows add no targets to those of the whole grid. A window of 0 cuts nothing.
    """
    lengths = [length for length in range(2, side + 1, 2) if side % length == 0]
    return min(lengths, key=lambda length: abs(math.log(length / window))) if window and lengths else side
