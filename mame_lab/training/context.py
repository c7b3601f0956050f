"""What the training of a run goes by, from its configuration on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mame_lab.merging import Method, method_from
from mame_lab.models.checkpoint import Checkpoint
from mame_lab.models.settings import ModelSettings
from mame_lab.tasks.optim import AdamW
from mame_lab.training.freeze import FinetuneSettings
from mame_lab.training.trainer import TrainerSettings


@dataclass(frozen=True)
class RunContext:
    """One run of train.py.

    Attributes:
        model, method, finetune, optim, trainer, compile, seed: the configuration; `method` is the merging, a target
            that is still to be solved, or what it was solved to.
        values: the configuration as plain values, which every checkpoint carries.
        folder: of the run.
        past: the checkpoint that it goes on from.
    """

    model: ModelSettings
    method: Method
    finetune: FinetuneSettings
    optim: AdamW
    trainer: TrainerSettings
    compile: bool
    seed: int
    values: dict[str, Any]
    folder: Path
    past: Checkpoint | None = None

    def resumed_from(self, past: Checkpoint | None) -> RunContext:
        """The same run going on from a checkpoint, with the merging that it carries."""
        return replace(self, past=past, method=method_from(past.config["mame"]) if past else self.method)

    def solved(self, method: Method) -> RunContext:
        """The same run with what its target was solved to; its checkpoints carry that and what was asked for."""
        asked = self.past.config.get("asked") if self.past else None
        values = self.values | {"mame": asdict(method), "asked": asked or self.values["mame"]}
        return replace(self, method=method, values=values)
