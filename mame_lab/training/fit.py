"""The training of a run: what trains, from which batches, and back to the best weights."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from operator import attrgetter
from typing import Any

import rich
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from mame_lab import models
from mame_lab.data.datamodule import ImageData
from mame_lab.errors import MameLabError
from mame_lab.measure.conditions import weights_hash
from mame_lab.models import checkpoint, compilation
from mame_lab.tasks.classification import Classification
from mame_lab.tasks.distillation import Distillation
from mame_lab.training import freeze
from mame_lab.training.context import RunContext
from mame_lab.training.feature_cache.data import CachedData
from mame_lab.training.freeze import FinetuneSettings

print = rank_zero_only(rich.print)


def fit(model: nn.Module, data: ImageData, trainer: Trainer, run: RunContext) -> None:
    """Train what `run.finetune` says; the model then has the weights of the best checkpoint, unvalidated of the last.

    Args:
        model: merged.
        data: its training and validation images.
        trainer: what trains it.
        run: what the training goes by, its target solved.

    Raises:
        MameLabError: there is nothing to tell apart, or what is asked for does not go together.
    """
    if len(data.classes) < 2:
        raise MameLabError(f"dataset={data.dataset.name} has one class alone, {data.classes[0]}: add a second")
    print(freeze.freeze_table(freeze.freeze(model, run.finetune)))
    if run.compile:
        compilation.check_compiles(model, trainer.strategy.root_device)
        compilation.compile_models(model)
    taught, blocks = distillation(model, run.finetune), models.family_of(model).block_names(model)
    trained, batches = deepcopy(model.cpu()) if run.trainer.shards else model, data
    if run.finetune.cache:
        teacher: Any = taught and taught.teacher
        if run.past:  # What is kept is of the weights that the run goes on with.
            model.load_state_dict(run.past.state)
        batches = CachedData(data, model, run, teacher)
        trained, taught = batches.split_model, taught and replace(taught, teacher=attrgetter("logits_BK"))
    task = Classification(trained, len(data.classes), run.optim, run.values, blocks, taught)
    trainer.fit(task, batches, ckpt_path=run.past and run.past.path)
    saved: list[str] = [getattr(each, "best_model_path", "") for each in trainer.checkpoint_callbacks]
    if any(saved):
        model.load_state_dict(checkpoint.read(next(filter(None, saved))).state)


def distillation(model: nn.Module, settings: FinetuneSettings) -> Distillation | None:
    """What the unmerged model teaches with the weights of now, None where nothing; to be called after `freeze`."""
    if not settings.distill:
        return None
    teacher = models.unmerged_snapshot(model)
    return Distillation(teacher, settings.distill, weights_hash(teacher), settings.temperature)
