"""What fine-tuning merged brings back: trained checkpoints beside the weights that they started from.

S seeds, M test images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from glob import glob
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from rich import print
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from mame_lab.benchmarks.recovery.settings import Recovery
from mame_lab.data.datamodule import ImageData
from mame_lab.data.files import write_csv
from mame_lab.errors import MameLabError
from mame_lab.measure.comparison import check_classes, outcomes
from mame_lab.measure.cost import gflops
from mame_lab.measure.paired import MeanChange
from mame_lab.measure.precision import converted, prepared
from mame_lab.measure.table import results_table
from mame_lab.merging import Method, method_from
from mame_lab.models import apply, checkpoint, family_of, shared_copy
from mame_lab.models.checkpoint import Checkpoint

UNMERGED, MERGED, TUNED, TUNED_UNMERGED = ARMS = "unmerged", "merged", "fine-tuned", "fine-tuned, unmerged"
# What is set against what: what merging costs, what is left of that, what fine-tuning brings merged, and unmerged.
PAIRS = ((MERGED, UNMERGED), (TUNED, UNMERGED), (TUNED, MERGED), (TUNED_UNMERGED, UNMERGED))
START = "model.weights"  # of a checkpoint's run: where it started from
COUNTED = 16  # test images whose multiply-adds are counted


class RecoveryPoint(NamedTuple):
    """Two arms under one merging, over the seeds.

    Attributes:
        setting: the merging in full.
        cost: share of the unmerged model's multiply-adds.
        seeds: checkpoints that share the merging.
        arm, beside: what is set against what, see `PAIRS`.
        top1, top1_beside: share of the test images that each hits, mean over the seeds.
        change, low, high: top1 minus top1_beside, and its interval; see `MeanChange`.
        lowest, highest: of the changes of the seeds.
    """

    setting: str
    cost: float
    seeds: int
    arm: str
    beside: str
    top1: float
    top1_beside: float
    change: float
    low: float
    high: float
    lowest: float
    highest: float


def run(settings: Recovery, model: nn.Module, method: object, data: ImageData, trainer: Trainer, folder: Path) -> None:
    """Judge all checkpoints; print the table and write recovery.csv."""
    found = points(by_start(settings.checkpoints), model, data, trainer)
    if not trainer.is_global_zero:
        return
    write_csv(folder / "recovery.csv", RecoveryPoint._fields, found)
    print(table(found))


def by_start(pattern: str | None) -> dict[str, list[Checkpoint]]:
    """The checkpoints that a pattern of paths names, by the checkpoint that each started from.

    Raises:
        MameLabError: there is none, or one that did not start from a checkpoint.
    """
    runs = defaultdict(list)
    for path in sorted(glob(pattern or "", recursive=True)):
        tuned = checkpoint.read(path, "benchmark.checkpoints")
        start = str(tuned.config["model"]["weights"])
        if not start.endswith(".ckpt"):
            raise MameLabError(
                f"benchmark.checkpoints={path} started from model.weights={start}: give runs that started from a "
                f"checkpoint of train.py, which they are set against"
            )
        runs[start].append(tuned)
    if not runs:
        raise MameLabError(
            f"benchmark.checkpoints={pattern} names no file: give paths of checkpoints, such as a/*.ckpt"
        )
    return runs


def points(
    runs: dict[str, list[Checkpoint]], model: nn.Module, data: ImageData, trainer: Trainer
) -> list[RecoveryPoint]:
    """All pairs, from the merging that costs most to the one that costs least.

    Args:
        runs: see `by_start`.
        model: of their architecture; its weights are replaced.
        data, trainer: the images, and what runs over them.
    """
    methods, hits_of = {}, defaultdict(lambda: defaultdict(list))
    for start, tuned in runs.items():
        for method, arms in _accuracy_of(_loaded(model, checkpoint.read(start, START), START), tuned, data, trainer):
            methods[str(method)] = method
            for arm, hit_M in arms.items():
                hits_of[str(method)][arm].append(hit_M)
    images, model = converted(data.sample(COUNTED)[0], trainer), prepared(model, trainer).eval()
    with trainer.precision_plugin.forward_context():
        unmerged = gflops(model, images)
        costs = {
            setting: gflops(apply(shared_copy(model), method), images) / unmerged for setting, method in methods.items()
        }
    return [
        _point(setting, costs[setting], *pair, {arm: torch.stack(hits_SM) for arm, hits_SM in hits_of[setting].items()})
        for setting in sorted(costs, key=lambda setting: -costs[setting])
        for pair in PAIRS
    ]


def _accuracy_of(
    start: nn.Module, tuned: list[Checkpoint], data: ImageData, trainer: Trainer
) -> Iterator[tuple[Method, dict[str, Tensor]]]:
    """The merging of each checkpoint, and the test images that each arm hits (M,), all in one pass over them."""
    methods, models = [method_from(each.config["mame"]) for each in tuned], {UNMERGED: start}
    for i, (each, method) in enumerate(zip(tuned, methods, strict=True)):
        unmerged = _loaded(start, each, "benchmark.checkpoints")
        models[f"{i} {MERGED}"] = apply(shared_copy(start), method)
        models[f"{i} {TUNED}"] = apply(shared_copy(unmerged), method)
        models[f"{i} {TUNED_UNMERGED}"] = unmerged
    classifier = family_of(start).classifier
    for model in models.values():
        check_classes(classifier(model), data.classes)
    found = {name: outcome["top1"] for name, outcome in outcomes(models, classifier, data, trainer).items()}
    for i, method in enumerate(methods):
        yield method, {arm: found.get(f"{i} {arm}", found[UNMERGED]) for arm in ARMS}


def _loaded(model: nn.Module, stored: Checkpoint, key: str) -> nn.Module:
    """A model like this one with the weights of a checkpoint, which the key names."""
    copied = deepcopy(model)
    family_of(model).load_weights(copied, stored.state, f"{key}={stored.path}")
    return copied


def _point(setting: str, cost: float, arm: str, beside: str, hits_of: dict[str, Tensor]) -> RecoveryPoint:
    """From which test images each arm hits (S, M)."""
    hits_SM, beside_SM = (hits_of[each].cpu().numpy() for each in (arm, beside))
    changes_S = hits_SM.mean(1) - beside_SM.mean(1)
    change = MeanChange.between(hits_SM, beside_SM)
    ends = float(changes_S.min()), float(changes_S.max())
    return RecoveryPoint(setting, cost, len(hits_SM), arm, beside, hits_SM.mean(), beside_SM.mean(), *change, *ends)


def table(found: list[RecoveryPoint]) -> Table:
    """A section for each merging, a row for each pair."""
    caption = "[low, high]: 95 % interval by the paired bootstrap of the test images, each with all its seeds."
    headers = "cost", "seeds", "", "top-1, %", "points", "against"
    rows = results_table("What fine-tuning merged brings back", headers, caption, no_wrap=True)
    for setting in dict.fromkeys(point.setting for point in found):
        pairs = [point for point in found if point.setting == setting]
        rows.add_section()
        rows.add_row(f"{pairs[0].cost:.3f}", str(pairs[0].seeds), UNMERGED, f"{100 * pairs[0].top1_beside:.1f}")
        for p in pairs:
            change = Text(f"{100 * p.change:+.1f} [{100 * p.low:+.1f}, {100 * p.high:+.1f}]")
            rows.add_row("", "", p.arm, f"{100 * p.top1:.1f}", change, p.beside)
    return rows
