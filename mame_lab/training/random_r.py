"""Training at many `r`: each batch merges by one drawn at random, so that one checkpoint serves them all."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from mame_lab.data.samplers import seed_of
from mame_lab.errors import MameLabError
from mame_lab.merging import Method, Ward
from mame_lab.models import apply, family_of, shared_copy
from mame_lab.training.context import RunContext


def callbacks(model: nn.Module, run: RunContext) -> list[Callback]:
    """What `finetune.random_r` asks for: a `DrawR`, or nothing.

    Raises:
        MameLabError: an `r` is not valid, or is larger than the sources of the model; or the model does not merge.
    """
    if run.finetune.random_r is None:
        return []
    said = f"finetune.random_r={run.finetune.random_r}"
    if _is_off(model, run.method):
        raise MameLabError(
            f"{said} and mame=off (or mame.r=0) exclude each other, for there is no method to train with: leave one"
        )
    trial, methods = shared_copy(model), []
    for budget in run.finetune.random_r:
        try:
            methods.append(run.method.with_budget(budget))
            apply(trial, methods[-1])
        except MameLabError as error:
            raise MameLabError(f"{said}: {error}") from error
    return [DrawR(methods, run.seed)]


class DrawR(Callback):
    """Draws the method that a training batch merges by: a function of seed, epoch and batch, alike in all processes.

    In validation, and once it is trained, the model merges as it did before.

    Args:
        methods: what is drawn from, uniformly.
        seed: of the run.
    """

    def __init__(self, methods: list[Method], seed: int) -> None:
        self.methods, self.seed = methods, seed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.model: Any = pl_module.model
        self.own = vars(self.model).get("method", Ward(r=0))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        drawn = seed_of(self.seed, trainer.current_epoch, batch_idx) % len(self.methods)
        apply(self.model, self.methods[drawn])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        apply(self.model, self.own)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        apply(self.model, self.own)


def _is_off(model: nn.Module, method: Method) -> bool:
    return not method.has_target and method.schedule_for(len(family_of(model).block_names(model))).off
