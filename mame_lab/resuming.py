"""A run that was killed goes on where it stopped, and ends as if it never had been.

What is random in a step follows seed, epoch, step and process (as the data do, see `data.samplers`), so a checkpoint
need not hold any generator's state; and a checkpoint is written whole or not at all.
"""

from __future__ import annotations

import os
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from mame_lab.checkpoint import Checkpoint, read
from mame_lab.data.samplers import seed_of
from mame_lab.errors import MameLabError

# What a run may change when it goes on: where it runs, and what it shows.
FREE = {
    "trainer": {"accelerator", "devices", "strategy", "num_nodes", "enable_progress_bar", "log_every_n_steps"},
    "dataset": {"root", "num_workers"},
}
FIXED = ("model", "mame", "dataset", "finetune", "optim", "trainer", "seed")


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: at every moment there is a whole one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            raise MameLabError(
                f"checkpoint {path} cannot be written ({str(error).splitlines()[0]}): make room or give another "
                f"hydra.run.dir; what was saved before is whole, and resume=auto goes on from it"
            ) from error


class Reseed(Callback):
    """Before every batch the generators of a process start anew, from the seed of the run, epoch, batch and rank."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(seed_of(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))


class EverySteps(Callback):
    """Writes `last.ckpt` within an epoch too, after every `steps` updates of the weights."""

    def __init__(self, path: Path, steps: int) -> None:
        self.path, self.steps = path, steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning counts a batch twice that was begun, but not done, when the checkpoint was written."""
        total = trainer.fit_loop.epoch_loop.batch_progress.total
        total.ready = total.started = total.processed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not at the end of the batch before: its metrics are logged by now.
        updated = batch_idx > 0 and batch_idx % trainer.accumulate_grad_batches == 0
        if updated and trainer.global_step % self.steps == 0:
            trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning counts the last update before such a batch again."""
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        if progress.processed < progress.ready:
            checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def find(run: Any, folder: Path, values: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint that `run.resume` names; for "auto" the newest one of the folder, None if it has none yet.

    Args:
        run: a `config.TrainConfig`.
        folder: of the run.
        values: the same as plain values, see `config.plain`.

    Raises:
        MameLabError: the file cannot be read, or it is of a run with another configuration.
    """
    if run.resume is None:
        return None
    if run.resume != "auto":
        return _checked(read(run.resume, "resume"), run, values)
    saved = [*folder.glob("checkpoints/last.ckpt"), *folder.glob("hpc_ckpt_*.ckpt")]  # Lightning's, when preempted
    found = max((read(path, "resume") for path in saved), key=lambda checkpoint: checkpoint.step, default=None)
    return found and _checked(found, run, values)


def _checked(found: Checkpoint, run: Any, values: dict[str, Any]) -> Checkpoint:
    solved = any(values["mame"].get(key) is not None for key in ("flops", "speedup"))
    now = values | {"mame": found.config["mame"]} if solved else values
    for group in FIXED:
        before, after = _flat(found.config, group), _flat(now, group)
        before = _defaults(run, group) | before  # for keys that were not there yet
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key) and key.partition(".")[2] not in FREE.get(group, ()):
                raise MameLabError(
                    f"resume: {found.path} was made with {key}={before.get(key)}, and this run has "
                    f"{key}={after.get(key)}: give what it had, or start anew in another hydra.run.dir"
                )
    return found


def _defaults(run: Any, group: str) -> dict[str, Any]:
    part = getattr(run, group, None)
    defaults = {
        each.name: each.default if each.default_factory is MISSING else each.default_factory()
        for each in (fields(part) if is_dataclass(part) else ())
    }
    return {f"{group}.{name}": value for name, value in defaults.items()}


def _flat(config: dict[str, Any], group: str) -> dict[str, Any]:
    value = config.get(group)
    return {f"{group}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {group: value}
