"""Classification: whatever gives logits is trained with cross-entropy and judged by top-1 and top-5.

Shapes: B batch, K classes. An input is what the model takes, the batch first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from mame_lab.errors import MameLabError
from mame_lab.tasks.distillation import Distillation
from mame_lab.tasks.optim import AdamW


class Mean(MeanMetric):
    """A mean that counts in its own precision when the model around it is converted to half."""

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        return super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), exclude_state)


class Classification(LightningModule):
    """Trains and evaluates `model` on batches of (inputs, labels_B).

    Args:
        model: gives logits_BK from a batch of inputs.
        num_classes: K.
        optim: the recipe: optimizer, schedule, label smoothing.
        config: the run's configuration as plain values (dict, list, str, numbers); every checkpoint carries it.
        blocks: names of the model's blocks, in order, for rates by layer.
        distillation: what a teacher adds to the loss of training.

    Raises:
        MameLabError: a loss of training or validation is not finite. This stops the fit before a checkpoint is written.
            Or the run goes on from a checkpoint, with another teacher.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        optim: AdamW,
        config: dict[str, Any],
        blocks: Sequence[str] = (),
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.optim = optim
        self.blocks = blocks
        self.config = config
        self.distillation = distillation
        self.metrics = nn.ModuleDict()
        for stage in ("val", "test"):
            self.metrics[f"{stage}/loss"] = Mean(nan_strategy=float("nan"))
            for k in (1, 5):
                accuracy = MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro")
                self.metrics[f"{stage}/top{k}"] = accuracy

    def configure_model(self) -> None:
        """Under a strategy that shares out weights, those of a block come together while it runs, the rest for long."""
        if self.device_mesh is None:
            return
        from torch.distributed.fsdp import fully_shard

        for block in self.blocks:
            fully_shard(self.model.get_submodule(block), mesh=self.device_mesh["data_parallel"])
        fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels_B = batch
        logits_BK = self(inputs)
        loss = F.cross_entropy(logits_BK, labels_B, label_smoothing=self.optim.label_smoothing)
        if self.distillation:
            kl = self.distillation.kl(inputs, logits_BK)
            self.log("train/kl", kl, sync_dist=True)
            loss = self.distillation.loss(loss, kl)
        self._stop_unless_finite("train/loss", loss)
        self.log("train/loss", loss, batch_size=len(labels_B), prog_bar=True, sync_dist=True)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=len(labels_B))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self._stop_unless_finite("val/loss", self._evaluate("val", batch))

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self._evaluate("test", batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trainer: Any = self.trainer
        steps, epochs = trainer.estimated_stepping_batches, trainer.max_epochs
        optimizer, scheduler = self.optim.build(self.model, self.blocks, steps, epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """The rates are those of this run's schedule, also where a checkpoint is of a shorter run."""
        for scheduler in (each.scheduler for each in self.trainer.lr_scheduler_configs):
            rates = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            for group, peak, factor in rates:
                group["lr"] = peak * factor(scheduler.last_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config
        if self.distillation:
            checkpoint["teacher"] = self.distillation.teacher_hash

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.distillation and self.distillation.teacher_hash != checkpoint.get("teacher"):
            raise MameLabError(
                "finetune.distill: the teacher has not the weights that it had when the run started: give the "
                "model.weights of then, or start anew in another hydra.run.dir"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Where the task goes, its teacher goes too."""
        super()._apply(fn, recurse)
        if self.distillation and isinstance(self.distillation.teacher, nn.Module):
            self.distillation.teacher._apply(fn, recurse)
        return self

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels_B = batch
        logits_BK = self(inputs)
        loss_B = F.cross_entropy(logits_BK.float(), labels_B, reduction="none")
        given = {"loss": (loss_B,), "top1": (logits_BK, labels_B), "top5": (logits_BK, labels_B)}
        for name, of_batch in given.items():
            metric: Any = self.metrics[f"{stage}/{name}"]
            metric.update(*of_batch)
            self.log(f"{stage}/{name}", metric, prog_bar=f"{stage}/{name}" == "val/top1")
        return loss_B.mean()

    def _stop_unless_finite(self, name: str, loss: Tensor) -> None:
        if self.trainer.strategy.reduce_boolean_decision(bool(loss.isfinite())):
            return
        kept = [c.best_model_path for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        raise MameLabError(
            f"optim.lr={self.optim.lr}: {name} is not finite at step {self.global_step}, epoch {self.current_epoch}: "
            f"lower optim.lr; the last good checkpoint is kept ({', '.join(filter(None, kept)) or 'none was written'})"
        )
