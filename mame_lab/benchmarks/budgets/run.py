"""What one model's weights are worth at every budget: accuracy, cost, and speed in turns."""

from __future__ import annotations

from dataclasses import astuple, fields
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from rich import print
from rich.table import Table
from torch import nn

from mame_lab.benchmarks.budgets.settings import Budgets
from mame_lab.data.datamodule import ImageData
from mame_lab.data.files import write_csv
from mame_lab.errors import MameLabError
from mame_lab.measure import speed
from mame_lab.measure.comparison import changes, check_classes, compare, share
from mame_lab.measure.conditions import Conditions, gather_conditions, weights_hash
from mame_lab.measure.cost import gflops
from mame_lab.measure.paired import Change
from mame_lab.measure.precision import converted, prepared
from mame_lab.measure.proportion import Proportion
from mame_lab.measure.table import number, results_table
from mame_lab.merging import Method
from mame_lab.models import apply, family_of, shared_copy

UNMERGED = "unmerged"


class BudgetPoint(NamedTuple):
    """The model at one budget.

    Attributes:
        arm: the budget, or unmerged.
        top1: of the test images.
        change: of it against the unmerged model, on the same images; None for that.
        agreement: images whose top-1 class is that of the unmerged model; None for it, and without a classifier.
        cost: share of the unmerged model's multiply-adds.
        tokens: after the last block.
        samples_per_s: images a second, median.
        speedup: times faster than the unmerged model, median over the rounds.
    """

    arm: str
    top1: Proportion
    change: Change | None
    agreement: Proportion | None
    cost: float
    tokens: int
    samples_per_s: float
    speedup: float


def run(settings: Budgets, model: nn.Module, method: Method, data: ImageData, trainer: Trainer, folder: Path) -> None:
    """Measure all budgets; print the table, write budgets.csv and budgets.png."""
    if trainer.world_size > 1:
        raise MameLabError(f"benchmark=budgets times one device, here are {trainer.world_size}: set trainer.devices=1")
    if method.has_target:
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
        library=family_of(model).name,
        dataset=data.dataset.name,
        merging=str(method.with_budget(0)).replace("r=0", "r of the row", 1),
    )
    changed = [f"change_{entry.name}" for entry in fields(Change)]
    columns = "arm", "top1", "top1_low", "top1_high", *changed, *BudgetPoint._fields[3:]
    write_csv(folder / "budgets.csv", columns, map(_cells, found))
    figure(found).savefig(folder / "budgets.png", dpi=150)
    print(table(found, conditions))


def points(settings: Budgets, arms: dict[str, nn.Module], data: ImageData, trainer: Trainer) -> list[BudgetPoint]:
    """The unmerged model, then each budget."""
    family, device = family_of(arms[UNMERGED]), trainer.strategy.root_device
    keys = {arm: arm if arm == UNMERGED else str(index) for index, arm in enumerate(arms)}  # A fraction has a dot.
    models = {keys[arm]: each for arm, each in arms.items()}
    outcomes, distances = compare(models, family.classifier, data, trainer)
    images = converted(data.sample(settings.batch_size)[0], trainer)
    calls = {arm: partial(each.to(device).eval(), images) for arm, each in arms.items()}
    limits = {"max_rounds": settings.rounds, "min_rounds": settings.rounds}
    with torch.inference_mode(), trainer.precision_plugin.forward_context():
        taken = speed.time_interleaved(calls, device, **limits)
        tokens = {arm: int(family.trace(each, images[:1])[-1]) for arm, each in arms.items()}
    costs = {arm: gflops(each, images) for arm, each in arms.items()}
    agreement = {key: distance.agreement for key, distance in distances.items()}
    return [
        BudgetPoint(
            arm,
            share(outcomes[key]["top1"]),
            None if arm == UNMERGED else changes(outcomes[key], outcomes[UNMERGED])["top1"],
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
    arms = {UNMERGED: shared_copy(model)}
    for r in settings.r:
        try:
            arms[f"r={r}"] = apply(shared_copy(model), method.with_budget(r))
        except MameLabError as error:
            raise MameLabError(f"benchmark.r={settings.r}: {error}") from error
    return arms


def _cells(point: BudgetPoint) -> tuple[object, ...]:
    change = [None] * len(fields(Change)) if point.change is None else astuple(point.change)
    agreement = None if point.agreement is None else point.agreement.value
    return point.arm, point.top1.value, *point.top1.interval, *change, agreement, *point[4:]


def table(found: list[BudgetPoint], conditions: Conditions) -> Table:
    """A row for each budget."""
    legend = "[low, high]: paired 95 % interval of the change. Agreement: same top-1 class as unmerged."
    headers = "", "top-1", "change", "agreement", "cost", "tokens", "samples/s", "speed-up"
    rows = results_table("One checkpoint at every budget", headers, f"{legend}\n\n{conditions}", no_wrap=True)
    for point in found:
        agreement = "" if point.agreement is None else f"{100 * point.agreement.value:.1f} %"
        measured = f"{point.cost:.3f}", str(point.tokens), number(point.samples_per_s), f"{point.speedup:.2f}x"
        change = "" if point.change is None else str(point.change)
        rows.add_row(point.arm, f"{100 * point.top1.value:.1f} %", change, agreement, *measured)
    return rows


def figure(found: list[BudgetPoint]) -> Figure:
    """Accuracy against speed-up with the 95 % intervals of its change from the unmerged model's, the line."""
    plot = Figure(figsize=(7, 5), layout="constrained")
    axes = plot.subplots()
    unmerged, *merged = found
    axes.axhline(100 * unmerged.top1.value, color="black", linewidth=1, label=UNMERGED)
    speedups, top1 = [point.speedup for point in merged], [100 * point.top1.value for point in merged]
    changed = [point.change for point in merged if point.change]
    ends = [[100 * (c.value - c.low) for c in changed], [100 * (c.high - c.value) for c in changed]]
    axes.errorbar(speedups, top1, ends, marker="o", capsize=3, label="merged")
    for point, x, y in zip(merged, speedups, top1, strict=True):
        axes.annotate(point.arm, (x, y), (6, 6), textcoords="offset points")
    axes.set(xlabel="speed-up", ylabel="top-1, %")
    axes.margins(x=0.1)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return plot
