"""A run that was killed continues exactly: it ends with the weights that it would have had.

What is random in a step follows seed, epoch, step and process (as the data do, see `data.samplers`), so a checkpoint
need not hold any generator's state; and a checkpoint is written whole or not at all.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector

from mame_lab.data.files import whole_file
from mame_lab.data.samplers import seed_of
from mame_lab.errors import MameLabError
from mame_lab.models import tensor_file
from mame_lab.models.checkpoint import Checkpoint, read

log = logging.getLogger(__name__)

# What a run may change when it goes on: where it runs, how often it saves, and what it shows and measures.
FREE = {
    "trainer": {
        "accelerator",
        "devices",
        "strategy",
        "num_nodes",
        "enable_progress_bar",
        "detect_anomaly",
        "log_every_n_steps",
        "checkpoint_every_n_steps",
        "limit_test_batches",
    },
    "dataset": {"root", "num_workers", "clips", "crops"},
    "callbacks": {"lr_monitor", "device_stats", "model_summary"},
}
FREE_GROUPS = ("logger", "speed", "resume")
SOLVED = ("r", "tau", "flops", "speedup", "schedule", "solve", "blocks")  # of a method with a target


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: at every moment there is a whole one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            with whole_file(path) as part, part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            raise MameLabError(
                f"checkpoint {path} cannot be written ({str(error).splitlines()[0]}): make room or give another "
                f"hydra.run.dir; what was saved before is whole, and resume=auto goes on from it"
            ) from error


class PerStepSeed(Callback):
    """Before every batch the generators of a process start anew, from the seed of the run, epoch, batch and rank."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(seed_of(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))


class CheckpointEveryNSteps(Callback):
    """Writes `last.ckpt` within an epoch too, after every `steps` updates of the weights."""

    def __init__(self, path: Path, steps: int) -> None:
        self.path, self.steps = path, steps

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not at the end of the batch before: its metrics are logged by now.
        updated = batch_idx > 0 and batch_idx % trainer.accumulate_grad_batches == 0
        if updated and trainer.global_step % self.steps == 0:
            trainer.save_checkpoint(self.path)


class ExactProgress(Callback):
    """Counts what is done so that a run continues exactly, as Lightning's own counts do not let it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning counts a batch twice that was begun, but not done, when the checkpoint was written."""
        total = trainer.fit_loop.epoch_loop.batch_progress.total
        total.ready = total.started = total.processed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The step of the loggers is the number of updates; Lightning counts it by itself, and anew when it goes on."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Batches whose gradients wait for their update are not done, nor is what there is of a validation."""
        checkpoint["processes"] = trainer.world_size
        loops = checkpoint["loops"]["fit_loop"]
        batches = loops["epoch_loop.batch_progress"]["current"]
        if batches["completed"] < trainer.num_training_batches:
            batches["completed"] -= batches["completed"] % trainer.accumulate_grad_batches
        validation = trainer.fit_loop.epoch_loop.val_loop
        if trainer.validating and validation.batch_progress.current.completed < sum(validation.max_batches):
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            loops["epoch_loop.val_loop.batch_progress"] |= {"total": begun, "current": begun}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raise MameLabError where other processes would share out the rest of an epoch."""
        epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        processes = checkpoint.get("processes", trainer.world_size)
        if epoch["started"] > epoch["processed"] and processes != trainer.world_size:
            raise MameLabError(
                f"resume: {trainer.ckpt_path} was saved in the middle of an epoch by {processes} processes, and here "
                f"are {trainer.world_size}: go on with as many, their number may change where an epoch ends"
            )


class CarryBestCheckpoint(Callback):
    """The best checkpoint so far comes along into another folder, where Lightning would forget it."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raise MameLabError where it is gone."""
        best = trainer.checkpoint_callback
        if not isinstance(best, ModelCheckpoint):  # as with trainer.fast_dev_run
            return
        state = checkpoint["callbacks"].get(best.state_key, {})
        if not state.get("best_model_path"):
            return
        path = Path(best.format_checkpoint_name({}))
        found = _beside(Path(str(trainer.ckpt_path)), path.name)
        elsewhere = not (path.exists() and path.samefile(found))
        if elsewhere:
            _check_best(found, state["best_model_score"], checkpoint["global_step"])
        if trainer.is_global_zero and elsewhere:
            with whole_file(path) as part:
                shutil.copyfile(found, part)
        trainer.strategy.barrier()
        state |= {
            "dirpath": best.dirpath,
            "best_model_path": str(path),
            "kth_best_model_path": str(path),
            "best_k_models": {str(path): state["best_model_score"]},
        }


class ExplicitResume(_CheckpointConnector):
    """Loads the checkpoint that is named; Lightning's own takes what SLURM's preemption left, in evaluations too."""

    @property
    def _hpc_resume_path(self) -> None:
        return None


def callbacks(seed: int) -> list[Callback]:
    """What lets a run continue exactly."""
    return [PerStepSeed(seed), ExactProgress(), CarryBestCheckpoint()]


def find_checkpoint(run: Any, folder: Path, values: dict[str, Any]) -> Checkpoint | None:
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
    found = max(_saved(folder), key=lambda checkpoint: checkpoint.step, default=None)
    return found and _checked(found, run, values)


def _saved(folder: Path) -> Iterator[Checkpoint]:
    """`last.ckpt`, and what Lightning saved when SLURM preempted the run, which may be of its evaluation."""
    for path in folder.glob("checkpoints/last.ckpt"):
        yield read(path, "resume")
    for path in folder.glob("hpc_ckpt_*.ckpt"):
        try:
            yield read(path, "resume")
        except MameLabError as error:
            log.warning("left out: %s", error)


def _beside(path: Path, name: str) -> Path:
    """The file `name` of the run that a checkpoint is of."""
    for found in (path.with_name(name), path.with_name("checkpoints") / name):
        if found.exists():
            return found
    raise MameLabError(
        f"resume: {path} goes on with the best weights so far, and there is no {name} beside it: put it there, or "
        f"start anew from its own weights with model.weights={path}"
    )


def _check_best(path: Path, score: Any, step: int) -> None:
    """Raise MameLabError where `path` was written over after this step, for its run went on."""
    best = tensor_file.read(path, "resume")
    scores = [state.get("best_model_score") for state in best["callbacks"].values()]
    if best["global_step"] > step or score not in scores:
        raise MameLabError(
            f"resume: {path} holds the best weights of a later step, for its run went on: go on in its own folder, or "
            f"start anew with model.weights=FILE.ckpt"
        )


def _checked(found: Checkpoint, run: Any, values: dict[str, Any]) -> Checkpoint:
    asked = found.config | {"mame": _asked(found, values["mame"])}
    for group in (group for group in values if group not in FREE_GROUPS):
        before, after = _flat(asked, group), _flat(values, group)
        before = _defaults(run, group) | before  # for keys that were not there yet
        for key in after | before:
            had, has, lasts = before.get(key), after.get(key), key == "trainer.max_epochs"
            if had == has or (lasts and before[key] < after[key]) or key.partition(".")[2] in FREE.get(group, ()):
                continue
            raise MameLabError(
                f"resume: {found.path} was made with {key}={had}, and this run has {key}={has}: give what it had"
                f"{' or more' if lasts else ''}, or start anew in another hydra.run.dir"
            )
    return found


def _asked(found: Checkpoint, now: dict[str, Any]) -> dict[str, Any]:
    """The merging that its run asked for; where no target is asked for now, what was found for it then."""
    solved = found.config["mame"]
    if now.get("flops") is None and now.get("speedup") is None:
        return solved
    return found.config.get("asked") or solved | {key: now.get(key) for key in SOLVED}  # what old ones do not tell


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
