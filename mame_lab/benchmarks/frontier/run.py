"""What merging loses at equal multiply-adds, method by method."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import Trainer
from rich import print
from rich.markup import escape
from torch import Tensor, nn

from mame_lab.benchmarks.frontier.arms import REFERENCE, method_of
from mame_lab.benchmarks.frontier.charts import MEASURES, figure, table
from mame_lab.benchmarks.frontier.equal_cost import solve_for
from mame_lab.benchmarks.frontier.losses import Loss, Losses
from mame_lab.benchmarks.frontier.point import FrontierPoint
from mame_lab.benchmarks.frontier.settings import Frontier
from mame_lab.data.datamodule import ImageData
from mame_lab.data.files import write_csv
from mame_lab.errors import MameLabError
from mame_lab.measure.precision import converted, prepared


def run(settings: Frontier, model: nn.Module, method: object, data: ImageData, trainer: Trainer, folder: Path) -> None:
    """Measure all arms; write frontier.csv point by point, then a table and a plot of each measure."""
    found, count = [], len(_asked(settings))
    for point in points(settings, model, data, trainer):
        found.append(point)
        write_csv(folder / "frontier.csv", FrontierPoint._fields, found)
        print(escape(f"{len(found)}/{count} {_line(point)}"))
    for measure in MEASURES:
        if any(getattr(point, measure.value) is not None for point in found):
            figure(found, measure).savefig(folder / f"frontier_{measure.name}.png", dpi=150)
            print(table(found, measure))


def points(settings: Frontier, model: nn.Module, data: ImageData, trainer: Trainer) -> Iterator[FrontierPoint]:
    """All arms at the first cost, the reference in front, then at the next."""
    images, label_N = data.sample(min(settings.images, len(data.splits.test)))
    calibration = converted(data.sample(settings.calibration_images, "val")[0], trainer)
    labelled = _labelled(settings, data)
    with trainer.precision_plugin.forward_context():
        losses = Losses(prepared(model, trainer).eval(), converted(images, trainer), settings.batch_size)
        if labelled is not None:
            losses.fit_head(label_N, *labelled)
        references: dict[float, Loss] = {}
        for asked, arm in _asked(settings):
            try:
                setting, loss = _measure(losses, arm, asked, calibration)
            except MameLabError as error:
                yield FrontierPoint(arm, asked, reason=str(error))
                continue
            if arm == REFERENCE:
                references[asked] = loss
            yield _point(arm, asked, setting, loss, references.get(asked))


def _asked(settings: Frontier) -> list[tuple[float, str]]:
    """Costs and arms in the order in which they are measured."""
    return [(asked, arm) for asked in settings.costs for arm in dict.fromkeys((REFERENCE, *settings.arms))]


def _labelled(settings: Frontier, data: ImageData) -> tuple[Tensor, Tensor] | None:
    """Training images and their labels, to fit a head on; where there are none, it says that top-1 is left out."""
    train = data.splits.train
    if train is not None:
        images, label_M = data.sample(min(settings.training_images, len(train)), "train")
        if len(label_M.unique()) > 1:
            return images, label_M
    print(f"Top-1 is left out: dataset={data.dataset.name} has no training images of two classes or more.")
    return None


def _measure(losses: Losses, arm: str, asked: float, calibration: Tensor) -> tuple[str, Loss]:
    """The arm's method at this cost, in full, and what it loses."""
    method = solve_for(losses, method_of(arm, asked), calibration)
    return str(method), losses(method)


def _point(arm: str, asked: float, setting: str, loss: Loss, reference: Loss | None) -> FrontierPoint:
    feature_ratio, token_ratio, top1_ratio = loss.ratios(reference)
    point = FrontierPoint(
        arm, asked, loss.cost, loss.feature_error, feature_ratio, loss.token_error, token_ratio, setting=setting
    )
    if loss.top1 is None:
        return point
    low, high = loss.top1.interval
    return point._replace(
        top1=loss.top1.merged,
        top1_unmerged=loss.top1.unmerged,
        top1_change=loss.top1.difference,
        top1_low=low,
        top1_high=high,
        top1_p=loss.top1.p,
        top1_ratio=top1_ratio,
    )


def _line(point: FrontierPoint) -> str:
    if point.cost is None:
        return f"{point.arm} at cost {point.asked} is not measured: {point.reason}"
    top1 = "" if point.top1 is None else f", top-1 {100 * point.top1:.1f} %"
    errors = f"error of feature {point.feature_error:.4f}, of tokens {point.token_error:.4f}{top1}"
    return f"{point.arm} at cost {point.cost:.3f}: {errors}"
