"""The settings of the curve of budgets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from mame_lab.benchmarks.base import Benchmark
from mame_lab.errors import MameLabError


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
