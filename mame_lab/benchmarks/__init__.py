"""Experiments that set merge methods side by side on one model: a folder each, `settings.py` and `run.py`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mame_lab.benchmarks.base import Benchmark
from mame_lab.benchmarks.budgets.settings import Budgets
from mame_lab.benchmarks.denoiser.settings import Denoiser
from mame_lab.benchmarks.frontier.settings import Frontier
from mame_lab.benchmarks.grid_attention.settings import GridAttention
from mame_lab.benchmarks.recovery.settings import Recovery
from mame_lab.benchmarks.suite.settings import Suite
from mame_lab.benchmarks.throughput.settings import Throughput

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from mame_lab.merging import Method

BENCHMARKS: dict[str, type[Benchmark]] = {
    "frontier": Frontier,
    "throughput": Throughput,
    "suite": Suite,
    "budgets": Budgets,
    "recovery": Recovery,
    "denoiser": Denoiser,
    "grid_attention": GridAttention,
}


def run(settings: Benchmark, model: Any, method: Method, data: Any, trainer: Trainer | None, folder: Path) -> None:
    """Measure, print a table, and write a CSV file, and most a plot, to the folder.

    Args:
        settings: of one of `BENCHMARKS`, whose `run` does it.
        model: unmerged, with its weights; it is left as it was. A pipeline for those that take one.
        method: the group `mame`, for a benchmark that does not name its own methods.
        data: an `ImageData`: its test images are measured on, its validation images are what schedules are solved on.
            Prompts for a pipeline. Model, data and trainer are None for one that is `complete`.
        trainer: its device and precision hold for everything.
        folder: where the files go.
    """
    import_module(f"mame_lab.benchmarks.{settings.name}.run").run(settings, model, method, data, trainer, folder)
    if trainer is None or trainer.is_global_zero:
        print(f"Written to {folder}")
