"""How fast merging runs: methods, batch sizes, and the merge steps alone, in turns in one process."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from rich import box, print
from rich.table import Table
from torch import Tensor, nn

from mame_lab import speed
from mame_lab.benchmarks.settings import Throughput
from mame_lab.data.datamodule import ImageData
from mame_lab.merging import METHODS, Method
from mame_lab.merging.plan import MergePlan
from mame_lab.merging.state import merge_step
from mame_lab.merging.tokens import Tokens
from mame_lab.models import apply, twin
from mame_lab.targets import gflops

UNMERGED = "unmerged"


class Row(NamedTuple):
    """One arm at one batch size.

    Attributes:
        batch: images in a batch.
        arm: the method, or unmerged.
        samples_per_s: images a second, median.
        speedup: times faster than the unmerged model, median over the rounds.
        ideal: the ratio of multiply-adds.
        realised: the share of the ideal speed-up that has arrived.
        merging: the share of its time that goes to the merge steps.
    """

    batch: int
    arm: str
    samples_per_s: float
    speedup: float
    ideal: float
    realised: float
    merging: float


def run(settings: Throughput, model: nn.Module, data: ImageData, trainer: Trainer, folder: Path) -> None:
    """Time all arms; print the table, write throughput.csv and throughput.png."""
    found = list(rows(settings, model, data, trainer))
    with (folder / "throughput.csv").open("w", newline="") as file:
        csv.writer(file).writerows([Row._fields, *found])
    figure(found).savefig(folder / "throughput.png", dpi=150)
    print(table(found))


def rows(settings: Throughput, model: nn.Module, data: ImageData, trainer: Trainer) -> Iterator[Row]:
    """All arms at the first batch size, then at the next."""
    device = trainer.strategy.root_device
    model = model.to(device).eval()
    methods = {name: METHODS[name](r=settings.r, blocks=settings.blocks) for name in settings.methods}
    models = {UNMERGED: model} | {name: apply(twin(model), method) for name, method in methods.items()}
    images = trainer.precision_plugin.convert_input(data.sample(max(settings.batch_sizes))[0].to(device))
    cost = {name: gflops(each, images) for name, each in models.items()}
    limits = {"max_rounds": settings.rounds, "min_rounds": settings.rounds}
    for batch in settings.batch_sizes:
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            arms: dict[str, Callable[[], object]] = {n: partial(each, images[:batch]) for n, each in models.items()}
            steps = {name: _merge_steps(model, method, images[:batch]) for name, method in methods.items()}
            taken = speed.time_interleaved(
                arms | {f"{name} steps": call for name, call in steps.items()}, device, **limits
            )
        for name in models:
            speedup, ideal = speed.speedup(taken[name], taken[UNMERGED]), cost[UNMERGED] / cost[name]
            merging = median(taken[f"{name} steps"]) / median(taken[name]) if name in methods else 0.0
            yield Row(batch, name, batch / median(taken[name]), speedup, ideal, speedup / ideal, merging)


def _merge_steps(model: nn.Module, method: Method, images: Tensor) -> Callable[[], None]:
    """A call that does the merge steps of one forward pass and nothing else."""
    spy = _Spy(r=method.r, blocks=method.blocks, base=method)
    apply(twin(model), spy)(images)

    def steps() -> None:
        for tokens, leave in spy.steps:
            merge_step(method, tokens, leave)

    return steps


@dataclass
class _Spy(Method):
    """Merges as `base` does, and keeps what its steps are given."""

    base: Any = None
    steps: list[tuple[Tokens, int | None]] = field(default_factory=list)

    adaptive: ClassVar[bool] = True

    @property
    def needs_keys(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.base.needs_keys

    def plan(self, tokens: Tokens, leave: int | None) -> MergePlan:
        self.steps.append((tokens, leave))
        return self.base.plan(tokens, leave)


def table(found: list[Row]) -> Table:
    """A section for each batch size."""
    rows = Table(title="Speed against the unmerged model, same weights, same run", box=box.HORIZONTALS)
    for header in ("batch", "", "samples/s", "speed-up", "FLOP-ideal", "realised", "merge steps"):
        rows.add_column(header)
    for row in found:
        if row.arm == UNMERGED:
            rows.add_section()
            rows.add_row(str(row.batch), row.arm, f"{row.samples_per_s:.1f}")
        else:
            speeds = f"{row.speedup:.2f}x", f"{row.ideal:.2f}x", f"{100 * row.realised:.0f} %"
            rows.add_row("", row.arm, f"{row.samples_per_s:.1f}", *speeds, f"{100 * row.merging:.1f} %")
    return rows


def figure(found: list[Row]) -> Figure:
    """Speed-up over the batch size, one line for each method, with the FLOP-ideal one as a dashed line."""
    plot = Figure(figsize=(7, 5), layout="constrained")
    axes = plot.subplots()
    for arm in dict.fromkeys(row.arm for row in found if row.arm != UNMERGED):
        line = [row for row in found if row.arm == arm]
        (drawn,) = axes.plot([row.batch for row in line], [row.speedup for row in line], marker="o", label=arm)
        axes.plot([row.batch for row in line], [row.ideal for row in line], "--", color=drawn.get_color(), alpha=0.5)
    axes.axhline(1, color="black", linewidth=1)
    axes.set(xlabel="batch size", ylabel="speed-up (dashed: FLOP-ideal)", ylim=(0, None))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks := sorted({row.batch for row in found}), [str(tick) for tick in ticks])
    axes.legend(frameon=False)
    return plot
