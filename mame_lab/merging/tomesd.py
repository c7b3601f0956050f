"""ToMe for Stable Diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mame_lab.merging.method import GridMethod

if TYPE_CHECKING:
    from torch import Tensor

    from mame_lab.merging.grid.assignment import Match


@dataclass
class ToMeSD(GridMethod):
    """ToMe for Stable Diffusion (Bolya and Hoffman, Token Merging for Fast Stable Diffusion, arXiv 2303.17604).

    For U-Nets only. In each cell of 2 x 2 tokens one, drawn anew for every merge step and the same in all samples, is a
    target; where a side of the grid is odd, its last tokens are sources. The cosine similarity over the whole grid
    decides, and attention is not proportional. Drawn from torch's global generator.
    """

    method: str = "tomesd"
    prop_attn: bool = False

    def match(self, x_BNC: Tensor, grid: tuple[int, int]) -> Match:
        import torch

        from mame_lab.merging import matching
        from mame_lab.merging.grid.assignment import Match

        rows, columns = grid[0] // 2, grid[1] // 2
        device = x_BNC.device
        drawn_hw = torch.randint(4, (rows, columns), device=device)
        row_hw = 2 * torch.arange(rows, device=device)[:, None] + drawn_hw // 2
        column_hw = 2 * torch.arange(columns, device=device) + drawn_hw % 2
        target_T = (row_hw * grid[1] + column_hw).flatten()
        is_source_N = torch.ones(grid[0] * grid[1], dtype=torch.bool, device=device).index_fill(0, target_T, False)
        source_S = is_source_N.sort(stable=True).indices[len(target_T) :]
        y_BNC = matching.unit(x_BNC).to(x_BNC.dtype)
        score_BS, nearest_BS = (y_BNC[:, source_S] @ y_BNC[:, target_T].mT).max(2)
        return Match(source_S, target_T[nearest_BS], score_BS)
