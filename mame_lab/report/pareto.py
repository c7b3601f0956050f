"""The models that runs measured, and which of them nothing else beats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import NamedTuple

from mame_lab.measure.result import ModelMeasurement, Result
from mame_lab.report.conditions import conditions
from mame_lab.report.runs import Run


class Axis(NamedTuple):
    """What accuracy is traded for."""

    name: str
    title: str
    amount: Callable[[ModelMeasurement], float]
    sign: int  # 1: more is better; -1: less is


AXES = (
    Axis("speed", "samples/s  (more is better)", lambda arm: arm.samples_per_s, 1),
    Axis("GFLOPs", "GFLOPs a sample  (less is better)", lambda arm: arm.gflops, -1),
)


@dataclass(frozen=True)
class Model:
    """One side of the comparison: what a run merged, or the unmerged weights that runs have in common."""

    runs: list[Run]
    result: Result
    merged: bool

    @property
    def arm(self) -> ModelMeasurement:
        return self.result.merged if self.merged else self.result.unmerged


def models(runs: Sequence[Run]) -> list[Model]:
    """What each finished run merged, then each unmerged model once, at its median speed."""
    finished = [(run, run.result) for run in runs if run.result]
    shared: dict[tuple, list[tuple[Run, Result]]] = {}
    for run, result in finished:
        same = result.conditions.weights, result.unmerged.top1, *sorted(conditions(result).items())
        shared.setdefault(same, []).append((run, result))
    merged = [Model([run], result, merged=True) for run, result in finished]
    return merged + [_unmerged(group) for group in shared.values()]


def optimal(models: Sequence[Model], axis: Axis) -> list[Model]:
    """Those that no other is at least as good as in accuracy and on the axis, and better in one of the two."""
    judged = [model for model in models if model.arm.top1]
    points = [(top1.value, axis.sign * axis.amount(model.arm)) for model in judged if (top1 := model.arm.top1)]
    return [model for model, keep in zip(judged, front(points), strict=True) if keep]


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each point is Pareto-optimal, where more is better in both coordinates."""
    return [not any(p != q and p[0] <= q[0] and p[1] <= q[1] for q in points) for p in points]


def _unmerged(group: list[tuple[Run, Result]]) -> Model:
    median = median_low(result.unmerged.samples_per_s for _, result in group)
    result = next(result for _, result in group if result.unmerged.samples_per_s == median)
    return Model([run for run, _ in group], result, merged=False)
