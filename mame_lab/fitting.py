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

from mame_lab import checkpoint, compilation, finetune, models
from mame_lab.checkpoint import Checkpoint
from mame_lab.config import TrainConfig
from mame_lab.data.datamodule import ImageData
from mame_lab.errors import MameLabError
from mame_lab.finetune import Finetune
from mame_lab.results import weights_hash
from mame_lab.tasks.classification import Classification
from mame_lab.tasks.distillation import Distillation
from mame_lab.trunk.data import TrunkData

print = rank_zero_only(rich.print)


def fit(
    model: nn.Module,
    data: ImageData,
    trainer: Trainer,
    run: TrainConfig,
    values: dict[str, Any],
    past: Checkpoint | None,
) -> None:
    """Train what `run.finetune` says; the model then has the weights of the best checkpoint, unvalidated of the last.

    Args:
        model: merged.
        data: its training and validation images.
        trainer: what trains it.
        run: the configuration.
        values: the same as plain values, which every checkpoint carries.
        past: where to go on from.

    Raises:
        MameLabError: there is nothing to tell apart, or what is asked for does not go together.
    """
    if len(data.classes) < 2:
        raise MameLabError(f"dataset={run.dataset.name} has one class alone, {data.classes[0]}: add a second")
    print(finetune.table(finetune.freeze(model, run.finetune)))
    if run.compile:
        compilation.check_compiles(model, trainer.strategy.root_device)
        compilation.compile_models(model)
    taught, blocks = distillation(model, run.finetune), models.family_of(model).block_names(model)
    trained, batches = deepcopy(model.cpu()) if run.trainer.shards else model, data
    if run.finetune.cache:
        teacher: Any = taught and taught.teacher
        if past:  # What is kept is of the weights that the run goes on with.
            model.load_state_dict(past.state)
        batches = TrunkData(data, model, run, teacher)
        trained, taught = batches.staged, taught and replace(taught, teacher=attrgetter("logits_BK"))
    task = Classification(trained, len(data.classes), run.optim, values, blocks, taught)
    trainer.fit(task, batches, ckpt_path=past and past.path)
    saved: list[str] = [getattr(each, "best_model_path", "") for each in trainer.checkpoint_callbacks]
    if any(saved):
        model.load_state_dict(checkpoint.read(next(filter(None, saved))).state)


def distillation(model: nn.Module, settings: Finetune) -> Distillation | None:
    """What the unmerged model teaches with the weights of now, None where nothing; to be called after `freeze`."""
    if not settings.distill:
        return None
    teacher = models.unmerged_snapshot(model)
    return Distillation(teacher, settings.distill, weights_hash(teacher), settings.temperature)
