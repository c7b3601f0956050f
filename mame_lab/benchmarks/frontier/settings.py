"""The settings of the frontier."""

from __future__ import annotations

from dataclasses import dataclass, field

from mame_lab.benchmarks.base import Benchmark
from mame_lab.benchmarks.frontier.arms import ARMS, method_of
from mame_lab.errors import MameLabError


@dataclass
class Frontier(Benchmark):
    """What merging loses at equal cost, every arm beside `tome:constant`, by three measures.

    They are the error of the pooled feature, that of the patch tokens restored to the full grid, and, where there are
    labelled training images, top-1 of a linear head on the features; see `losses`.

    Args:
        costs: shares of the unmerged model's multiply-adds that every arm is solved to.
        arms: METHOD:SCHEDULE or METHOD:SCHEDULE:unweighted (see `arms.method_of`). Thresholds are solved on the images
            that they are measured on, so that costs are equal; every schedule on validation images.
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
