"""The settings of the benchmarks; what they do stands in a file each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mame_lab.benchmarks.variants import VARIANTS
from mame_lab.errors import MameLabError
from mame_lab.merging import METHODS, Method
from mame_lab.merging.grid import Grid

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import nn

    from mame_lab.data.datamodule import ImageData

ARMED = METHODS | VARIANTS
ARMS = (
    "ward:adaptive",
    "ward:calibrated",
    "ward:rising",
    "ward:constant",
    "paper:adaptive",
    "paper:constant",
    "tome:rising",
    "drop:constant",
)


@dataclass
class Benchmark(ABC):
    """The `benchmark` group of the configuration.

    Args:
        name: which benchmark it is, a key of `mame_lab.benchmarks.BENCHMARKS`.
    """

    name: str

    @abstractmethod
    def run(self, model: nn.Module, method: Method, data: ImageData, trainer: Trainer, folder: Path) -> None:
        """Measure, print a table, and write CSV and plot to the folder.

        Args:
            model: unmerged, with its weights; it is left as it was.
            method: the group `mame`, for a benchmark that does not name its own methods.
            data: its test images are measured on, its validation images are what schedules are solved on.
            trainer: its device and precision hold for everything.
            folder: where the files go.
        """


@dataclass
class Frontier(Benchmark):
    """Feature error against cost: every arm is brought to the cost that ToMe has at some settings.

    Args:
        tome_r, tome_blocks: ToMe's settings: tokens that leave in a block, and the first blocks in which they do.
        arms: METHOD:SCHEDULE, a method or one of `variants.VARIANTS`. An adaptive threshold is solved on the images
            that it is measured on, so that costs are equal; a calibrated list on validation images.
        images: test images to measure error and cost on.
        calibration_images: validation images to calibrate on.
        batch_size: images in a batch.
    """

    name: str = "frontier"
    tome_r: list[int] = field(default_factory=lambda: [8, 16, 24, 28])
    tome_blocks: list[int] = field(default_factory=lambda: [12, 12, 8, 8])
    arms: list[str] = field(default_factory=lambda: list(ARMS))
    images: int = 32
    calibration_images: int = 16
    batch_size: int = 16

    def __post_init__(self) -> None:
        for arm in self.arms:
            if arm.count(":") != 1 or arm.split(":")[0] not in ARMED:
                raise MameLabError(
                    f"benchmark.arms={arm} is not valid: write METHOD:SCHEDULE with a method of {', '.join(ARMED)}"
                )
        if len(self.tome_r) != len(self.tome_blocks):
            raise MameLabError(
                f"benchmark.tome_r={self.tome_r} and benchmark.tome_blocks={self.tome_blocks} differ in length: "
                f"give both for each setting"
            )

    def run(self, model: nn.Module, method: Method, data: ImageData, trainer: Trainer, folder: Path) -> None:
        from mame_lab.benchmarks import frontier

        frontier.run(self, model, data, trainer, folder)


@dataclass
class Throughput(Benchmark):
    """Speed over batch sizes: the unmerged model and each method, in turns in one process.

    Args:
        methods: what is timed, each with `r` tokens that leave in `blocks`.
        r, blocks: the budget of all methods: see `Method`.
        tau: a threshold instead of the budget, with a batch both padded and packed: see `Adaptive`.
        batch_sizes: images in a timed batch, one row of the table each.
        compiled: time every arm compiled as well.
        rounds: timed calls of each arm.
    """

    name: str = "throughput"
    methods: list[str] = field(default_factory=lambda: ["ward", "paper", "tome"])
    r: int = 13
    blocks: int | None = None
    tau: float | None = None
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8, 64])
    compiled: bool = False
    rounds: int = 20

    def run(self, model: nn.Module, method: Method, data: ImageData, trainer: Trainer, folder: Path) -> None:
        from mame_lab.benchmarks import throughput

        throughput.run(self, model, data, trainer, folder)


@dataclass
class Budgets(Benchmark):
    """Accuracy and speed of one model over the budget: the same weights, merged by `mame` with each in turn.

    Args:
        r: values of `mame.r`, numbers or fractions; blocks and schedule are those of `mame`, or of the checkpoint.
        batch_size: images in a timed batch.
        rounds: timed calls of each arm, the unmerged model among them.
    """

    name: str = "budgets"
    r: list[Any] = field(default_factory=lambda: [0, 4, 8, 12, 16])
    batch_size: int = 64
    rounds: int = 10

    def __post_init__(self) -> None:
        for key in ("batch_size", "rounds"):
            if getattr(self, key) < 1:
                raise MameLabError(f"benchmark.{key}={getattr(self, key)} is not positive: give 1 or more")
        if not self.r:
            raise MameLabError("benchmark.r=[] holds no budget: give values of mame.r, such as [0, 8]")

    def run(self, model: nn.Module, method: Method, data: ImageData, trainer: Trainer, folder: Path) -> None:
        from mame_lab.benchmarks import budgets

        budgets.run(self, model, method, data, trainer, folder)


@dataclass
class Denoiser(Benchmark):
    """One denoising step of a pipeline over sizes of the latents: the unmerged U-Net and each method, in turns.

    Args:
        methods: what is timed, each with `r` in `blocks`.
        r, blocks, grid: of all methods: see `Method`.
        latents: rows and columns of the latents, an eighth of the image's.
        batch: samples of a step; 2 for one image with classifier-free guidance.
        rounds: timed calls of each arm.
    """

    name: str = "denoiser"
    methods: list[str] = field(default_factory=lambda: ["ward", "tomesd"])
    r: Any = 0.5
    blocks: Any = None
    grid: Grid = field(default_factory=Grid)
    latents: list[int] = field(default_factory=lambda: [64, 96])
    batch: int = 2
    rounds: int = 5

    def __post_init__(self) -> None:
        known = [name for name, method in METHODS.items() if method.restores]
        if unknown := set(self.methods) - set(known):
            raise MameLabError(f"benchmark.methods={sorted(unknown)} is not for U-Nets: choose from {', '.join(known)}")

    def run(self, model: Any, method: object, data: object, trainer: object, folder: Path) -> None:
        """As `Benchmark.run`, with a pipeline on its device; its own noise takes the place of data."""
        from mame_lab.benchmarks import denoiser

        denoiser.run(self, model.unet, folder)


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

    def run(self, model: nn.Module, method: Method, data: ImageData, trainer: Trainer, folder: Path) -> None:
        from mame_lab.benchmarks import grid_attention

        grid_attention.run(self, model, data, trainer, folder)
