"""What merging costs in fidelity at equal multiply-adds, method by method."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from rich import box, print
from rich.table import Table
from torch import Tensor, nn

from mame_lab.benchmarks.settings import ARMED, Frontier
from mame_lab.comparison import captured_input
from mame_lab.data.datamodule import ImageData
from mame_lab.fidelity import Fidelity
from mame_lab.merging import Method, ToMe
from mame_lab.models import apply, family_of, twin
from mame_lab.targets import gflops, solve

REFERENCE = "tome:constant"


class Point(NamedTuple):
    """One method at one cost.

    Attributes:
        arm: the method and its schedule.
        setting: the method in full.
        cost: share of the unmerged model's multiply-adds, mean over the images.
        error: the feature error of `fidelity.Fidelity`.
        of_tome: the error over that of ToMe.
    """

    arm: str
    setting: str
    cost: float
    error: float
    of_tome: float


def run(settings: Frontier, model: nn.Module, data: ImageData, trainer: Trainer, folder: Path) -> None:
    """Measure all arms; print the table, write frontier.csv and frontier.png."""
    found = []
    for point in points(settings, model, data, trainer):
        found.append(point)
        print(f"{point.arm:>16}  cost {point.cost:.3f}  error {point.error:.4f}  {point.setting}")
    with (folder / "frontier.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([Point._fields, *found])
    figure(found).savefig(folder / "frontier.png", dpi=150)
    print(table(found))


def points(settings: Frontier, model: nn.Module, data: ImageData, trainer: Trainer) -> Iterator[Point]:
    """All arms at the cost of the first of ToMe's settings, then at that of the next."""
    device = trainer.strategy.root_device
    images = data.sample(settings.images)[0].to(device)
    calibration = data.sample(settings.calibration_images, "val")[0].to(device)
    with trainer.precision_plugin.forward_context():
        measure = Measure(model.to(device).eval(), images, settings.batch_size)
        for r, blocks in zip(settings.tome_r, settings.tome_blocks, strict=True):
            reference = ToMe(r=r, blocks=blocks)
            cost, tome_error = measure(reference)
            yield Point(REFERENCE, str(reference), cost, tome_error, 1.0)
            for arm in settings.arms:
                name, schedule = arm.split(":")
                target = ARMED[name](flops=cost, schedule=schedule)
                method = solve(model, target, images if schedule == "adaptive" else calibration)
                arm_cost, error = measure(method)
                yield Point(arm, str(method), arm_cost, error, error / tome_error)


class Measure:
    """Cost and feature error of a method on some images, against the model unmerged."""

    def __init__(self, model: nn.Module, images: Tensor, batch_size: int) -> None:
        self.model, self.images, self.batches = model, images, images.split(batch_size)
        self.unmerged_features = self._features(model)
        self.unmerged_gflops = gflops(model, images)

    def __call__(self, method: Method) -> tuple[float, float]:
        merged = apply(twin(self.model), method)
        fidelity = Fidelity()
        fidelity.update(None, None, self._features(merged), self.unmerged_features)
        return gflops(merged, self.images) / self.unmerged_gflops, fidelity.compute().feature_error

    def _features(self, model: nn.Module) -> Tensor:
        with torch.inference_mode(), captured_input(family_of(model).classifier(model)) as features:
            for batch in self.batches:
                model(batch)
        return torch.cat(features)


def table(found: list[Point]) -> Table:
    """A row for each arm, a column for each cost."""
    costs = [point.cost for point in found if point.arm == REFERENCE]
    title = "Feature error at equal cost, and its ratio to ToMe's"
    rows = Table(title=title, box=box.HORIZONTALS, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("", *(f"cost {cost:.3f}" for cost in costs)):
        rows.add_column(header, no_wrap=True)
    for arm in dict.fromkeys(point.arm for point in found):
        rows.add_row(arm, *(f"{p.error:.4f} {p.of_tome:.2f}x" for p in found if p.arm == arm))
    return rows


def figure(found: list[Point]) -> Figure:
    """Error against cost, one line for each arm; nearer to the lower left corner is better."""
    plot = Figure(figsize=(7, 5), layout="constrained")
    axes = plot.subplots()
    for arm in dict.fromkeys(point.arm for point in found):
        line = sorted((point.cost, point.error) for point in found if point.arm == arm)
        style = {"color": "black", "linewidth": 2.5} if arm == REFERENCE else {}
        axes.plot(*zip(*line, strict=True), marker="o", label=arm, **style)
    axes.set(yscale="log", xlabel="share of the multiply-adds", ylabel="feature error")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    return plot
