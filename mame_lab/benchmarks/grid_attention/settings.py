"""The settings of the attention on a grid."""

from __future__ import annotations

from dataclasses import dataclass, field

from mame_lab.benchmarks.base import Benchmark
from mame_lab.errors import MameLabError


@dataclass
class GridAttention(Benchmark):
    """What merging on a grid, as in a U-Net, does to the attention of a ViT: one choice after the other.

    Args:
        r: shares of the patch tokens that are removed, up to 3/4.
        images: test images.
    """

    name: str = "grid_attention"
    r: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75])
    images: int = 8

    def __post_init__(self) -> None:
        if not self.r or not all(0 < r <= 0.75 for r in self.r):
            raise MameLabError(f"benchmark.r={self.r} is not valid: give shares of the tokens above 0 and up to 0.75")
        if self.images < 2:
            raise MameLabError(f"benchmark.images={self.images} says nothing of a spread: give 2 or more")
