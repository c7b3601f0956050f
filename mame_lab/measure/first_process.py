"""Work of the first of several processes, whose outcome all of them get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from lightning.pytorch import Trainer

from mame_lab.errors import MameLabError

Outcome = TypeVar("Outcome")


def of_first(trainer: Trainer, work: Callable[[], Outcome]) -> Outcome:
    """What `work` gives in the first process, in all of them; a MameLabError there is raised in all."""
    if trainer.world_size == 1:
        return work()
    strategy: Any = trainer.strategy
    if strategy.launcher:
        strategy.launcher.launch(strategy.setup_environment, trainer=trainer)
    else:
        strategy.setup_environment()
    try:
        outcome = work() if trainer.is_global_zero else None
    except MameLabError as error:
        outcome = error
    outcome = strategy.broadcast(outcome)
    if isinstance(outcome, MameLabError):
        raise outcome
    return outcome
