"""The `callbacks` group: what Lightning offers beside the training, off by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer


@dataclass
class CallbackSettings:
    """Lightning's callbacks; each file of the group sets one key, and `callbacks=[early_stopping,lr_monitor]` two.

    Args:
        early_stopping: validations without a better `val/top1` after which training ends. None: it does not end early.
        min_delta: by how much `val/top1` is to rise at least to count as better.
        lr_monitor: log the rate of every group of parameters.
        device_stats: log memory and load of the device at every batch.
        model_summary: levels of modules of which to print parameters before training. None: nothing is printed.
    """

    early_stopping: int | None = None
    min_delta: float = 0.0
    lr_monitor: bool = False
    device_stats: bool = False
    model_summary: int | None = None

    def __post_init__(self) -> None:
        for key in ("early_stopping", "model_summary"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise MameLabError(f"callbacks.{key}={getattr(self, key)}: set it to 1 or more, or to null for none")
        if self.min_delta and self.early_stopping is None:
            raise MameLabError(
                f"callbacks.min_delta={self.min_delta} has no meaning without callbacks.early_stopping: set it too"
            )

    def build(self) -> list[Callback]:
        """The callbacks that are asked for."""
        from lightning.pytorch import callbacks

        built: list[Callback] = []
        if self.early_stopping is not None:
            built.append(_early_stopping(self.early_stopping, self.min_delta))
        if self.lr_monitor:
            built.append(callbacks.LearningRateMonitor("step"))
        if self.device_stats:
            built.append(callbacks.DeviceStatsMonitor())
        if self.model_summary is not None:
            built.append(callbacks.RichModelSummary(self.model_summary))
        return built


def _early_stopping(patience: int, min_delta: float) -> Callback:
    from lightning.pytorch.callbacks import EarlyStopping

    class ResumableEarlyStopping(EarlyStopping):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            """A run that had stopped early does not train on when it is resumed."""
            trainer.should_stop = self.wait_count >= self.patience

    return ResumableEarlyStopping("val/top1", min_delta, patience, mode="max")
