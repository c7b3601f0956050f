"""How fast merging runs: methods, batch sizes, and the merge steps alone, in turns in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from rich import print
from rich.table import Table
from torch import Tensor, nn

from mame_lab.benchmarks.merge_steps import MergeSteps
from mame_lab.benchmarks.throughput.settings import Throughput
from mame_lab.data.datamodule import ImageData
from mame_lab.data.files import write_csv
from mame_lab.measure import flops, speed
from mame_lab.measure.cost import gflops
from mame_lab.measure.precision import converted, prepared
from mame_lab.measure.table import results_table
from mame_lab.merging import METHODS, Method
from mame_lab.models import apply, is_adaptive, shared_copy
from mame_lab.models.compilation import check_compiles, compile_models

UNMERGED = "unmerged"


class ThroughputRow(NamedTuple):
    """One arm at one batch size.

    Attributes:
        batch: images in a batch.
        arm: the method, or unmerged.
        samples_per_s: images a second, median.
        speedup: times faster than the unmerged model, median over the rounds.
        ideal: the ratio of multiply-adds, mean over the images; padding does not count.
        padded: the same with the padding of the batch counted.
        realised: the share of the ideal speed-up that has arrived.
        merging: the share of its time that goes to the merge steps; None where they cannot be timed alone.
    """

    batch: int
    arm: str
    samples_per_s: float
    speedup: float
    ideal: float
    padded: float
    realised: float
    merging: float | None


def run(
    settings: Throughput, model: nn.Module, method: object, data: ImageData, trainer: Trainer, folder: Path
) -> None:
    """Time all arms; print the table, write throughput.csv and throughput.png."""
    found = list(rows(settings, model, data, trainer))
    write_csv(folder / "throughput.csv", ThroughputRow._fields, found)
    figure(found).savefig(folder / "throughput.png", dpi=150)
    print(table(found))


def rows(settings: Throughput, model: nn.Module, data: ImageData, trainer: Trainer) -> Iterator[ThroughputRow]:
    """All arms at the first batch size, then at the next; a compiled arm against the compiled unmerged model."""
    device = trainer.strategy.root_device
    model = prepared(model, trainer).eval()
    methods = {str(method): method for method in _methods(settings)}
    packed = [name for name, method in methods.items() if method.packed]
    models = {UNMERGED: model} | {name: apply(shared_copy(model), method) for name, method in methods.items()}
    images = converted(data.sample(max(settings.batch_sizes))[0], trainer)
    unmerged_gflops = gflops(model, images)
    ideal = {name: unmerged_gflops / gflops(each, images) for name, each in models.items()}
    compiled = {}
    if settings.compiled:
        check_compiles(model, device, "benchmark.compiled")
        compiled = {name: shared_copy(each) for name, each in models.items() if name not in packed}
        compile_models(*compiled.values(), graphs=True)
    for batch in settings.batch_sizes:
        forwards = {(name, ""): each for name, each in models.items()}
        forwards |= {(name, "compiled"): each for name, each in compiled.items()}
        arms: dict[Any, Callable[[], object]] = {arm: partial(each, images[:batch]) for arm, each in forwards.items()}
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            arms |= {(name, "steps"): MergeSteps(model, method, images[:batch]) for name, method in methods.items()}
            limits = {"max_rounds": settings.rounds, "min_rounds": settings.rounds}
            taken = speed.time_interleaved(arms, device, **limits)
        padded = {name: unmerged_gflops / _padded_gflops(each, images[:batch]) for name, each in models.items()}
        for name, how in forwards:
            seconds = median(taken[name, how])
            speedup = speed.speedup(taken[name, how], taken[UNMERGED, how])
            merging = None if how or name == UNMERGED else median(taken[name, "steps"]) / seconds
            costs = ideal[name], padded[name], speedup / ideal[name]
            yield ThroughputRow(batch, f"{name} {how}".strip(), batch / seconds, speedup, *costs, merging)


def _padded_gflops(model: nn.Module, images: Tensor) -> float:
    return flops.gflops(model, images, together=True)[""] if is_adaptive(model) else gflops(model, images)


def _methods(settings: Throughput) -> Iterator[Method]:
    for name in settings.methods:
        if settings.tau is None:
            yield METHODS[name](r=settings.r, blocks=settings.blocks)
        else:
            for batching in ("per_sample", "packed"):
                yield METHODS[name](tau=settings.tau, batching=batching, blocks=settings.blocks)


def table(found: list[ThroughputRow]) -> Table:
    """A section for each batch size."""
    headers = "batch", "", "samples/s", "speed-up", "ideal", "padded", "realised", "merging"
    rows = results_table("Speed against the unmerged model, same weights, same run", headers)
    for row in found:
        cells = [row.arm, f"{row.samples_per_s:.1f}"]
        if not row.arm.startswith(UNMERGED):
            cells += [f"{row.speedup:.2f}x", f"{row.ideal:.2f}x", f"{row.padded:.2f}x", f"{100 * row.realised:.0f} %"]
        if row.merging is not None:
            cells.append(f"{100 * row.merging:.1f} %")
        if row.arm == UNMERGED:
            rows.add_section()
        rows.add_row(str(row.batch) if row.arm == UNMERGED else "", *cells)
    return rows


def figure(found: list[ThroughputRow]) -> Figure:
    """Speed-up over the batch size, one line for each method, with the FLOP-ideal one as a dashed line."""
    plot = Figure(figsize=(7, 5), layout="constrained")
    axes = plot.subplots()
    for arm in dict.fromkeys(row.arm for row in found if not row.arm.startswith(UNMERGED)):
        line = [row for row in found if row.arm == arm]
        (drawn,) = axes.plot([row.batch for row in line], [row.speedup for row in line], marker="o", label=arm)
        axes.plot([row.batch for row in line], [row.ideal for row in line], "_--", color=drawn.get_color(), alpha=0.5)
    axes.axhline(1, color="black", linewidth=1)
    axes.set(xlabel="batch size", ylabel="speed-up (dashed: FLOP-ideal)", ylim=(0, None))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks := sorted({row.batch for row in found}), [str(tick) for tick in ticks])
    axes.legend(frameon=False)
    return plot
