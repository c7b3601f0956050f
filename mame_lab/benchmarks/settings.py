"""The settings of the benchmarks; what they do stands in a file each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mame_lab.benchmarks.arms import ARMS, method_of
from mame_lab.data.prompts import Prompts
from mame_lab.errors import MameLabError
from mame_lab.merging import METHODS, Method
from mame_lab.merging.grid import Grid

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import nn

    from mame_lab.data.datamodule import ImageData


@dataclass
class Benchmark(ABC):
    """The `benchmark` group of the configuration.

    Args:
        name: which benchmark it is, a key of `mame_lab.benchmarks.BENCHMARKS`.

    Attributes:
        unread: the groups of the configuration that say nothing to it, for it has settings of its own.
    """

    name: str

    unread: ClassVar[tuple[str, ...]] = ("mame", "speed")

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
    """What merging loses at equal cost, every arm beside `tome:constant`, by three measures.

    They are the error of the pooled feature, that of the patch tokens restored to the full grid, and, where there are
    labelled training images, top-1 of a linear head on the features; see `losses`.

    Args:
        costs: shares of the unmerged model's multiply-adds that every arm is solved to.
        arms: see `arms.method_of`. An adaptive threshold is solved on the images that it is measured on, so that costs
            are equal; every other schedule on validation images.
        images: test images to measure on; all of them if there are fewer.
        training_images: training images to fit the linear head on; all of them if there are fewer.
        calibration_images: validation images to solve schedules on.
        batch_size: images in a batch.
    """

    name: str = "frontier"
    costs: list[float] = field(default_factory=lambda: [0.80, 0.60, 0.45, 0.37])
    arms: list[str] = field(default_factory=lambda: list(ARMS))
    images: int = 64
    training_images: int = 1000
    calibration_images: int = 16
    batch_size: int = 16

    def __post_init__(self) -> None:
        for key in ("images", "training_images", "calibration_images", "batch_size"):
            if getattr(self, key) < 1:
                raise MameLabError(f"benchmark.{key}={getattr(self, key)} is not positive: give 1 or more")
        if not self.costs or not all(0 < cost < 1 for cost in self.costs):
            raise MameLabError(
                f"benchmark.costs={self.costs} is out of range: give shares of the multiply-adds, in (0, 1)"
            )
        for arm in self.arms:
            method_of(arm, self.costs[0])

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

    def __post_init__(self) -> None:
        if unknown := set(self.methods) - set(METHODS):
            raise MameLabError(f"benchmark.methods={sorted(unknown)} is not known: choose from {', '.join(METHODS)}")
        budgeted = [name for name in self.methods if not METHODS[name].adaptive]
        if self.tau is not None and budgeted:
            raise MameLabError(
                f"benchmark.tau={self.tau} is a threshold, and benchmark.methods={budgeted} need a budget: leave one "
                f"of the two"
            )
        refused = {
            f"benchmark.tau={self.tau}": self.tau is not None,
            **{f"benchmark.methods=[{name}]": "graph" in METHODS[name].gives_up for name in self.methods},
        }
        for other in (other for other, given in refused.items() if given and self.compiled):
            raise MameLabError(
                f"benchmark.compiled=true and {other} exclude each other, for that does not compile into one graph: "
                f"leave one of the two"
            )

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

    unread: ClassVar[tuple[str, ...]] = ("speed",)

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
class Recovery(Benchmark):
    """What fine-tuning merged brings back: checkpoints beside those that they started from, on the same test images.

    Args:
        checkpoints: a pattern of paths (`outputs/runs/*/checkpoints/best.ckpt`) of runs of train.py that started, by
            `model.weights`, from checkpoints of others. Those that merge alike are seeds of one another.
    """

    name: str = "recovery"
    checkpoints: str | None = None

    def run(self, model: nn.Module, method: Method, data: ImageData, trainer: Trainer, folder: Path) -> None:
        from mame_lab.benchmarks import recovery

        recovery.run(self, model, data, trainer, folder)


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

    unread: ClassVar[tuple[str, ...]] = ("mame", "speed", *(f"dataset.{each.name}" for each in fields(Prompts)))

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
