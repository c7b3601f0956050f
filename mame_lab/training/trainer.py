"""The Lightning Trainer: its settings, and the callbacks and the quiet that every run wants."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import Logger


# Those of Lightning's under which every process runs the command from its start, and trains on its own device.
STRATEGIES = ("ddp", "fsdp", "auto", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")


@dataclass
class TrainerSettings:
    """The arguments of Lightning's Trainer that a run sets; each means what it means there.

    Args:
        max_epochs, accelerator, devices, num_nodes, precision, gradient_clip_val: as in Lightning's Trainer.
        accumulate_grad_batches, val_check_interval, check_val_every_n_epoch: as in Lightning's Trainer.
        limit_train_batches, limit_val_batches, limit_test_batches: as in Lightning's Trainer.
        fast_dev_run, log_every_n_steps, deterministic, enable_progress_bar: as in Lightning's Trainer.
        detect_anomaly: name the operation whose gradient is not finite; slow.
        strategy: one of `STRATEGIES`; `fsdp` is FSDP2, see `sharding`.
        checkpoint_every_n_steps: `last.ckpt` is also written after so many updates within an epoch.
    """

    max_epochs: int = 12
    accelerator: str = "auto"
    devices: Any = "auto"
    strategy: str = "auto"
    num_nodes: int = 1
    precision: str = "32-true"
    gradient_clip_val: float | None = 1.0
    accumulate_grad_batches: int = 1
    limit_train_batches: Any = 1.0
    limit_val_batches: Any = 1.0
    limit_test_batches: Any = 1.0
    val_check_interval: Any = 1.0
    check_val_every_n_epoch: int | None = 1
    fast_dev_run: Any = False
    log_every_n_steps: int = 10
    checkpoint_every_n_steps: int | None = None
    deterministic: Any = False
    detect_anomaly: bool = False
    enable_progress_bar: bool = True

    def __post_init__(self) -> None:
        for key in ("max_epochs", "accumulate_grad_batches", "checkpoint_every_n_steps", "check_val_every_n_epoch"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise MameLabError(f"trainer.{key}={getattr(self, key)}: set it to 1 or more")
        if self.val_check_interval == 0:
            raise MameLabError("trainer.val_check_interval=0: set it to batches, 1 or more, or to a share of an epoch")
        if self.strategy.lower() not in STRATEGIES:
            raise MameLabError(
                f"trainer.strategy={self.strategy} does not work here: take trainer.strategy={STRATEGIES[0]}, or "
                f"choose from {', '.join(STRATEGIES[1:])}"
            )

    @property
    def shards(self) -> bool:
        """Whether the weights are shared out among the processes: the trained model cannot then be run by itself."""
        return self.strategy.lower() == "fsdp"

    @property
    def float32_weights(self) -> bool:
        """Whether weights and activations between blocks are float32, also where products are not."""
        return self.precision in ("32", "32-true") or self.precision.endswith("-mixed")

    def unsharded(self) -> TrainerSettings:
        """The same with whole weights in every process."""
        return replace(self, strategy="ddp") if self.shards else self

    def build(self, folder: Path, loggers: list[Logger], callbacks: Sequence[Callback] = ()) -> Trainer:
        """A Trainer that writes `best.ckpt` (highest val/top1) and `last.ckpt` to `folder`/checkpoints.

        Raises:
            MameLabError: Lightning cannot run these settings on this machine.
        """
        from lightning.fabric.utilities.exceptions import MisconfigurationException
        from lightning.pytorch import Trainer

        from mame_lab.training.resume import AtomicCheckpointIO, CheckpointEveryNSteps, ExplicitResume

        _quieten()
        arguments = asdict(self)
        if self.shards:
            from mame_lab.training.sharding import Sharded

            arguments["strategy"] = Sharded()
        steps = arguments.pop("checkpoint_every_n_steps")
        checkpoints = folder / "checkpoints"
        within = [CheckpointEveryNSteps(checkpoints / "last.ckpt", steps)] if steps else []
        bars = [_progress_bar()] if self.enable_progress_bar else []
        try:
            trainer = Trainer(
                **arguments,
                logger=loggers,
                callbacks=[*callbacks, *_checkpoints(checkpoints), *within, *bars],
                plugins=AtomicCheckpointIO(),
                use_distributed_sampler=False,
                enable_model_summary=False,
                default_root_dir=folder,
            )
        except (ImportError, MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
            raise self._in_one_line(error, self._named(error, "{}") or self._changed) from error
        trainer._checkpoint_connector = ExplicitResume(trainer)
        return trainer

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What Lightning raises about a setting once the data are at hand is one line that names the setting."""
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        try:
            yield
        except (MisconfigurationException, ValueError) as error:
            named = self._named(error, "`{}`")
            if isinstance(error, MameLabError) or not named:
                raise
            raise self._in_one_line(error, named) from error

    @property
    def _changed(self) -> list[str]:
        """The settings that are not as by default."""
        return [each.name for each in fields(self) if getattr(self, each.name) != each.default]

    def _named(self, error: Exception, form: str) -> list[str]:
        """Those of them that an error mentions in this form."""
        return [key for key in self._changed if form.format(key) in str(error).lower()]

    def _in_one_line(self, error: Exception, keys: list[str]) -> MameLabError:
        said = " ".join(f"trainer.{key}={getattr(self, key)}" for key in keys) or "trainer"
        return MameLabError(f"{said}: {' '.join(str(error).split())}")


def _checkpoints(folder: Path) -> list[Callback]:
    from lightning.pytorch.callbacks import ModelCheckpoint

    best = ModelCheckpoint(folder, filename="best", monitor="val/top1", mode="max", enable_version_counter=False)
    last = ModelCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    return [best, last]


def _progress_bar() -> Callback:
    """One line an epoch that fits a terminal of 80 columns; in a file or a pipe it appears once the epoch is over."""
    from lightning.pytorch.callbacks import RichProgressBar
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

    class ProgressBar(RichProgressBar):
        def configure_columns(self, trainer: Trainer) -> list:
            batches = TextColumn("{task.completed:.0f}/{task.total:.0f}")
            time = TimeRemainingColumn(elapsed_when_finished=True)
            return [TextColumn("{task.description}"), BarColumn(bar_width=16), batches, time]

    return ProgressBar(refresh_rate=10, leave=True)


def _quieten() -> None:
    """Silences Lightning's hints and false alarms; its other warnings stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    messages = (
        "does not have many workers",
        "in eval mode at the start of training",
        "LeafSpec",
        "not resumable",
        "The dirpath has changed",
        "returned a view tensor",
    )
    for message in messages:
        warnings.filterwarnings("ignore", message=f".*{message}")
