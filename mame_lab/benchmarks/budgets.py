"""What one model's weights are worth at every budget: accuracy, cost, and speed in turns."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from rich import box, print
from rich.table import Table
from rich.text import Text
from torch import nn

from mame_lab import speed
from mame_lab.benchmarks.settings import Budgets
from mame_lab.comparison import check_classes, judge
from mame_lab.data.datamodule import ImageData
from mame_lab.errors import MameLabError
from mame_lab.merging import Method
from mame_lab.models import apply, family_of, twin
from mame_lab.precision import converted, prepared
from mame_lab.results import Conditions, Proportion, gather_conditions, number, weights_hash
from mame_lab.targets import gflops

UNMERGED = "unmerged"


class Point(NamedTuple):
    """The model at one budget.

    Attributes:
        arm: the budget, or unmerged.
        top1: of the test images.
        agreement: images whose top-1 class is that of the unmerged model; None for it, and without a classifier.
        cost: share of the unmerged model's multiply-adds.
        tokens: after the last block.
        samples_per_s: images a second, median.
        speedup: times faster than the unmerged model, median over the rounds.
    """

    arm: str
    top1: Proportion
    agreement: Proportion | None
    cost: float
    tokens: int
    samples_per_s: float
    speedup: float


def run(settings: Budgets, model: nn.Module, method: Method, data: ImageData, trainer: Trainer, folder: Path) -> None:
    """Measure all budgets; print the table, write budgets.csv and budgets.png."""
    if trainer.world_size > 1:
        raise MameLabError(f"benchmark=budgets times one device, here are {trainer.world_size}: set trainer.devices=1")
    if method.target:
        raise MameLabError(
            f"benchmark=budgets and mame={method} exclude each other, for the budgets are those of benchmark.r: leave "
            f"mame.flops and mame.speedup out, and set mame.schedule"
        )
    check_classes(family_of(model).classifier(model), data.classes)
    model = prepared(model, trainer)
    found = points(settings, at_budgets(settings, model, method), data, trainer)
    conditions = gather_conditions(
        trainer.strategy.root_device,
        trainer.precision,
        batch=settings.batch_size,
        rounds=settings.rounds,
        seed=data.seed,
        weights=weights_hash(model),
        library=family_of(model).__name__.rpartition(".")[2],
        dataset=data.dataset.name,
        merging=str(method.at(0)).replace("r=0", "r of the row", 1),
    )
    with (folder / "budgets.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "top1", "top1_low", "top1_high", *Point._fields[2:]])
        for point in found:
            agreement = None if point.agreement is None else point.agreement.value
            writer.writerow([point.arm, point.top1.value, *point.top1.interval, agreement, *point[3:]])
    figure(found).savefig(folder / "budgets.png", dpi=150)
    print(table(found, conditions))


def points(settings: Budgets, arms: dict[str, nn.Module], data: ImageData, trainer: Trainer) -> list[Point]:
    """The unmerged model, then each budget."""
    family, device = family_of(arms[UNMERGED]), trainer.strategy.root_device
    keys = {arm: arm if arm == UNMERGED else str(index) for index, arm in enumerate(arms)}  # A fraction has a dot.
    accuracy, distances = judge({keys[arm]: each for arm, each in arms.items()}, family.classifier, data, trainer)
    images = converted(data.sample(settings.batch_size)[0], trainer)
    calls = {arm: partial(each.to(device).eval(), images) for arm, each in arms.items()}
    limits = {"max_rounds": settings.rounds, "min_rounds": settings.rounds}
    with torch.inference_mode(), trainer.precision_plugin.forward_context():
        taken = speed.time_interleaved(calls, device, **limits)
        tokens = {arm: int(family.trace(each, images[:1])[-1]) for arm, each in arms.items()}
    costs = {arm: gflops(each, images) for arm, each in arms.items()}
    agreement = {key: distance.agreement for key, distance in distances.items()}
    return [
        Point(
            arm,
            accuracy[key]["top1"],
            Proportion(*agrees) if (agrees := agreement.get(key)) else None,
            costs[arm] / costs[UNMERGED],
            tokens[arm],
            settings.batch_size / median(taken[arm]),
            speed.speedup(taken[arm], taken[UNMERGED]),
        )
        for arm, key in keys.items()
    ]


def at_budgets(settings: Budgets, model: nn.Module, method: Method) -> dict[str, nn.Module]:
    """The model unmerged, and at each budget."""
    arms = {UNMERGED: twin(model)}
    for r in settings.r:
        try:
            arms[f"r={r}"] = apply(twin(model), method.at(r))
        except MameLabError as error:
            raise MameLabError(f"benchmark.r={settings.r}: {error}") from error
    return arms


def table(found: list[Point], conditions: Conditions) -> Table:
    """A row for each budget."""
    rows = Table(
        title="One checkpoint at every budget",
        caption=Text(f"[low, high]: 95 % interval. Agreement: same top-1 class as unmerged.\n\n{conditions}"),
        caption_justify="left",
        box=box.HORIZONTALS,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for header in ("", "top-1", "agreement", "cost", "tokens", "samples/s", "speed-up"):
        rows.add_column(header, no_wrap=True)
    for point in found:
        agreement = "" if point.agreement is None else f"{100 * point.agreement.value:.1f} %"
        measured = f"{point.cost:.3f}", str(point.tokens), number(point.samples_per_s), f"{point.speedup:.2f}x"
        rows.add_row(point.arm, str(point.top1), agreement, *measured)
    return rows


def figure(found: list[Point]) -> Figure:
    """Accuracy against speed-up with 95 % intervals; the line and the band are the unmerged model's."""
    plot = Figure(figsize=(7, 5), layout="constrained")
    axes = plot.subplots()
    unmerged, *merged = found
    axes.axhline(100 * unmerged.top1.value, color="black", linewidth=1, label=UNMERGED)
    axes.axhspan(*(100 * end for end in unmerged.top1.interval), color="black", alpha=0.08, linewidth=0)
    speedups, top1 = [point.speedup for point in merged], [100 * point.top1.value for point in merged]
    ends = [[100 * abs(p.top1.interval[side] - p.top1.value) for p in merged] for side in (0, 1)]
    axes.errorbar(speedups, top1, ends, marker="o", capsize=3, label="merged")
    for point, x, y in zip(merged, speedups, top1, strict=True):
        axes.annotate(point.arm, (x, y), (6, 6), textcoords="offset points")
    axes.set(xlabel="speed-up", ylabel="top-1, %")
    axes.margins(x=0.1)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return plot
