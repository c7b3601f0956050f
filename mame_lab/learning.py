"""mame.schedule=learned: from the thresholds that solve the target as they are to those that training makes of them."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mame_lab import checkpoint, targets
from mame_lab.costs import count
from mame_lab.merging import Method
from mame_lab.merging.thresholds import Learning, Thresholds
from mame_lab.models import apply, family_of
from mame_lab.tasks.classification import Classification
from mame_lab.tasks.thresholds import Budget, ThresholdClassification

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mame_lab.config import TrainConfig
    from mame_lab.data.datamodule import ImageData

# Of the soft count, as a share of the distance from 1 of the threshold that learning starts from.
TEMPERATURE = 0.2
# Training images whose mean cost is brought to the target before each validation.
IMAGES = 64


def start(method: Method) -> Method:
    """What learning starts from: one threshold for all blocks that meets the target."""
    return replace(method, schedule="adaptive") if method.learns else method


def task(data: ImageData, run: TrainConfig, asked: Method, model: nn.Module, *settings: Any) -> ThresholdClassification:
    """Classification with thresholds that learn, by which the model then merges.

    Args:
        data: the images.
        run: the configuration.
        asked: the merging that was asked for; that of `run` is where it starts.
        model: with merging applied.
        settings: what `Classification` takes after the model.
    """
    assert asked.flops is not None
    amounts = run.mame.schedule_for(len(family_of(model).block_names(model))).amounts
    found = [run.mame.of_block(block, len(amounts)).tau for block in range(len(amounts))]
    taus = [1.0 if amount == 0 else min(max(tau, -0.99), 1 - 1e-6) for tau, amount in zip(found, amounts, strict=True)]
    merging = [tau for tau in taus if tau < 1]
    thresholds = Thresholds(taus, TEMPERATURE * (1 - sum(merging) / len(merging)))
    costs = count(model, run.mame, data.sample(1, "train")[0])

    @cache
    def images() -> list[Tensor]:
        return list(data.sample(IMAGES, "train")[0].split(run.dataset.batch_size))

    learning = Learning(base=run.mame, thresholds=thresholds, prop_attn=run.mame.prop_attn)
    apply(model, learning)
    budget = Budget(asked.flops, costs.share, images)
    return ThresholdClassification(model, *settings, learning=learning, budget=budget, asked=asdict(asked))


def finish(task: Classification, model: nn.Module, method: Method, best: str, folder: Path) -> Method:
    """The merging that training ends with; the model merges by it from here on.

    Args:
        task: of the run.
        model: with its weights as they are to be used.
        method: the merging that training began with.
        best: the checkpoint that these weights are from; "": they are the last ones.
        folder: of the run: learned thresholds are saved there, to be given back.
    """
    if not isinstance(task, ThresholdClassification):
        return method
    learned = type(method)(**checkpoint.read(best).config["mame"]) if best else task.learning.learned()
    apply(model, learned)
    if task.trainer.is_global_zero:
        targets.tell("Learned", learned, folder)
    return learned
