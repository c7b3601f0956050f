"""What is measured of a model, and how long."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mame_lab.errors import MameLabError
from mame_lab.merging import Method
from mame_lab.models.settings import ModelSettings


@dataclass
class SpeedSettings:
    """How speed is measured.

    Args:
        batch_size: images in a timed batch.
        max_rounds: timed calls of each arm, at most.
        seconds: measuring ends after so long, once three rounds are done.
        cost_samples: images whose multiply-adds are counted where every image keeps as many tokens as it needs; those
            of the others that are timed follow from their tokens.
    """

    batch_size: int = 64
    max_rounds: int = 30
    seconds: float = 8.0
    cost_samples: int = 16

    def __post_init__(self) -> None:
        for entry in fields(self):
            if getattr(self, entry.name) <= 0:
                raise MameLabError(f"speed.{entry.name}={getattr(self, entry.name)} is not positive: give more than 0")


SMOKE = SpeedSettings(batch_size=4, max_rounds=3, seconds=1.0, cost_samples=1)  # enough to see that everything runs


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of `evaluate`.

    Args:
        model: what the model is called, and whose it is.
        method: how it merges.
        speed: how speed is measured.
        compile: time it through torch.compile, merged and unmerged alike.
        trained: whether any of its weights come from a run of train.py.
    """

    model: ModelSettings
    method: Method
    speed: SpeedSettings
    compile: bool = False
    trained: bool = False
