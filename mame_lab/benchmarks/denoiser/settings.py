"""The settings of the denoising step."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from mame_lab.benchmarks.base import Benchmark
from mame_lab.data.prompts import Prompts
from mame_lab.errors import MameLabError
from mame_lab.merging import METHODS
from mame_lab.merging.grid.settings import Grid
from mame_lab.merging.method import GridMethod


@dataclass
class Denoiser(Benchmark):
    """One denoising step of a pipeline over sizes of the latents: the unmerged U-Net and each method, in turns.

    Args:
        methods: what is timed.
        r: share of the tokens, or their number, that is removed at every resolution that merges, by all methods.
        blocks: the first so many resolutions merge, the finest first, or those of a list; None: where each
            method merges by default.
        grid: of all methods.
        latents: rows and columns of the latents, an eighth of the image's.
        batch_size: samples of a step; 2 for one image with classifier-free guidance.
        rounds: timed calls of each arm.
    """

    name: str = "denoiser"
    methods: list[str] = field(default_factory=lambda: ["ward", "tomesd"])
    r: Any = 0.5
    blocks: Any = None
    grid: Grid = field(default_factory=Grid)
    latents: list[int] = field(default_factory=lambda: [64, 96])
    batch_size: int = 2
    rounds: int = 5

    unread: ClassVar[tuple[str, ...]] = ("mame", "speed", *(f"dataset.{each.name}" for each in fields(Prompts)))

    def __post_init__(self) -> None:
        known = [name for name, method in METHODS.items() if issubclass(method, GridMethod)]
        if unknown := set(self.methods) - set(known):
            raise MameLabError(f"benchmark.methods={sorted(unknown)} is not for U-Nets: choose from {', '.join(known)}")
