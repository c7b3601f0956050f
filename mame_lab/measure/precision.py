"""Models and images as a trainer runs them: on its device and in its precision."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor, nn

Model = TypeVar("Model", bound="nn.Module")


def prepared(model: Model, trainer: Trainer) -> Model:
    """A copy of a model, which stays as it was. Copies of it that share its weights share none with the model."""
    return trainer.precision_plugin.convert_module(deepcopy(model).to(trainer.strategy.root_device))  # pyright: ignore


def converted(images: Tensor, trainer: Trainer) -> Tensor:
    """The images, of any shape."""
    return trainer.precision_plugin.convert_input(images.to(trainer.strategy.root_device))
