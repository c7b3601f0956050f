"""The settings of the throughput."""

from __future__ import annotations

from dataclasses import dataclass, field

from mame_lab.benchmarks.base import Benchmark
from mame_lab.errors import MameLabError
from mame_lab.merging import METHODS


@dataclass
class Throughput(Benchmark):
    """Speed over batch sizes: the unmerged model and each method, in turns in one process.

    Args:
        methods: what is timed.
        r: tokens that are removed in every merging block, by all methods.
        blocks: the first so many blocks merge; None: those in which each method is published.
        tau: a threshold on the similarity instead of `r`, with the batch both padded and packed.
        batch_sizes: images in a timed batch, one row of the table each.
        compiled: time every arm compiled as well, but for packed ones.
        rounds: timed calls of each arm.
    """

    name: str = "throughput"
    methods: list[str] = field(default_factory=lambda: ["ward", "mame", "tome"])
    r: int = 13
    blocks: int | None = None
    tau: float | None = None
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8, 64])
    compiled: bool = False
    rounds: int = 20

    def __post_init__(self) -> None:
        if unknown := set(self.methods) - set(METHODS):
            raise MameLabError(f"benchmark.methods={sorted(unknown)} is not known: choose from {', '.join(METHODS)}")
        budgeted = [name for name in self.methods if not METHODS[name].has_threshold]
        if self.tau is not None and budgeted:
            raise MameLabError(
                f"benchmark.tau={self.tau} is a threshold, and benchmark.methods={budgeted} need a budget: leave one "
                f"of the two"
            )
