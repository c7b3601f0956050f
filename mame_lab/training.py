"""The Lightning Trainer: its settings, and the callbacks and the quiet that every run wants."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any

from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import Logger

# What tells a process its place among others; Lightning sets it where nobody else has.
RANK = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "RANK")


@dataclass
class TrainerSettings:
    """The arguments of Lightning's Trainer that a run sets; each means what it means there.

    Args:
        checkpoint_every_n_steps: `last.ckpt` is also written after so many updates within an epoch.
    """

    max_epochs: int = 40
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
    fast_dev_run: Any = False
    log_every_n_steps: int = 10
    checkpoint_every_n_steps: int | None = None
    deterministic: Any = False
    enable_progress_bar: bool = True

    def __post_init__(self) -> None:
        for key in ("max_epochs", "accumulate_grad_batches", "checkpoint_every_n_steps"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise MameLabError(f"trainer.{key}={getattr(self, key)}: set it to 1 or more")

    @property
    def shards(self) -> bool:
        """Whether the weights are shared out among the processes: the trained model cannot then be run by itself."""
        return self.strategy.startswith(("fsdp", "deepspeed"))

    def unsharded(self) -> TrainerSettings:
        """The same with whole weights in every process."""
        return replace(self, strategy="ddp")

    def build(self, folder: Path, loggers: list[Logger], callbacks: Sequence[Callback] = ()) -> Trainer:
        """A Trainer that writes `best.ckpt` (highest val/top1) and `last.ckpt` to `folder`/checkpoints.

        Raises:
            MameLabError: Lightning cannot run these settings on this machine.
        """
        from lightning.fabric.utilities.exceptions import MisconfigurationException
        from lightning.pytorch import Trainer

        from mame_lab.resuming import AsAsked, EverySteps, WholeCheckpoints

        _quieten()
        arguments = asdict(self)
        steps = arguments.pop("checkpoint_every_n_steps")
        checkpoints = folder / "checkpoints"
        within = [EverySteps(checkpoints / "last.ckpt", steps)] if steps else []
        bars = [_progress_bar()] if self.enable_progress_bar else []
        try:
            trainer = Trainer(
                **arguments,
                logger=loggers,
                callbacks=[*callbacks, *_checkpoints(checkpoints), *within, *bars],
                plugins=WholeCheckpoints(),
                use_distributed_sampler=False,
                enable_model_summary=False,
                default_root_dir=folder,
            )
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise MameLabError(f"trainer: {' '.join(str(error).split())}") from error
        trainer._checkpoint_connector = AsAsked(trainer)
        return trainer


@contextmanager
def processes(trainer: Trainer) -> Iterator[None]:
    """What runs in it may start processes for other devices. They end with it: are waited for, or killed on an error.

    Afterwards this process is as alone as before, so that the next job of a sweep can start its own.
    """
    from torch import distributed

    before = set(os.environ)
    try:
        yield
        for child in _children(trainer):
            child.wait()
    except BaseException:
        for child in _children(trainer):
            child.kill()
        raise
    finally:
        if before.isdisjoint(RANK) and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        for name in set(RANK) - before:
            os.environ.pop(name, None)


def _children(trainer: Trainer) -> list[Any]:
    return [child for child in getattr(trainer.strategy.launcher, "procs", ()) if isinstance(child, Popen)]


def _checkpoints(folder: Path) -> list[Callback]:
    from lightning.pytorch.callbacks import ModelCheckpoint

    best = ModelCheckpoint(folder, filename="best", monitor="val/top1", mode="max", enable_version_counter=False)
    last = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
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
    )
    for message in messages:
        warnings.filterwarnings("ignore", message=f".*{message}")
