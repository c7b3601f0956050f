"""How the tokens of a grid merge before self-attention and are restored after it: MaMe and MaRe in a U-Net."""

from __future__ import annotations

from dataclasses import dataclass

from mame_lab.errors import MameLabError
from mame_lab.merging.numbers import is_int, plain


@dataclass
class Grid:
    """Settings of merging in a U-Net; a vision transformer has no use for them.

    Targets are the tokens at even rows and columns of a window, all others are sources. A source looks for its target
    in its own window only, so the cost grows with the number of tokens and not with its square; which sources are
    removed is decided over the whole grid. Each merges whole into its nearest target. What other choices lose was
    measured (`mame_lab.benchmarks.grid_attention`). ToMe for Stable Diffusion has its own partition, and compares over
    the whole grid.

    Args:
        window: side of a window in tokens; a side of the grid is cut into parts of the even length nearest to it that
            divides the side, and where none is near, into parts of which the last is shorter. 0: no windows.
    """

    window: int = 16

    def __post_init__(self) -> None:
        self.window = plain(self.window)
        if not is_int(self.window) or self.window < 0 or self.window == 1:
            raise MameLabError(f"mame.grid.window={self.window!r} is no window: give 2 or more tokens, or 0 for none")
