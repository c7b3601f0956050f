"""The settings of the recovery."""

from __future__ import annotations

from dataclasses import dataclass

from mame_lab.benchmarks.base import Benchmark


@dataclass
class Recovery(Benchmark):
    """What fine-tuning merged brings back: checkpoints beside those that they started from, on the same test images.

    Args:
        checkpoints: a pattern of paths (`outputs/runs/*/checkpoints/best.ckpt`) of runs of train.py that started, by
            `model.weights`, from checkpoints of others. Those that merge alike are seeds of one another.
    """

    name: str = "recovery"
    checkpoints: str | None = None
