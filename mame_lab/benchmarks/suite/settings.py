"""The settings of the suite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mame_lab.benchmarks.base import Benchmark
from mame_lab.errors import MameLabError


@dataclass
class Suite(Benchmark):
    """All speed figures of this machine, by one command: every family of models, with random weights, on noise.

    Args:
        minutes: about how long it may take; the most important rows come first, and each is written as it comes.
        small: the models that a laptop can time; None: where there is no accelerator.
    """

    name: str = "suite"
    minutes: float = 8.0
    small: bool | None = None

    complete: ClassVar[bool] = True
    unread: ClassVar[tuple[str, ...]] = ("mame", "speed", "model", "dataset", "trainer", "logger", "ckpt")

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise MameLabError(f"benchmark.minutes={self.minutes}: give a number above 0")
