"""What is said of each of transformers' architectures."""

from dataclasses import dataclass, field
from typing import Any

from transformers.utils import constants

from mame_lab.models import base

IMAGENET = {"mean": tuple(constants.IMAGENET_DEFAULT_MEAN), "std": tuple(constants.IMAGENET_DEFAULT_STD)}
HALF = {"mean": tuple(constants.IMAGENET_STANDARD_MEAN), "std": tuple(constants.IMAGENET_STANDARD_STD)}


@dataclass(frozen=True)
class Architecture(base.Architecture):
    """The classes, and what loading has to know.

    Attributes:
        preprocessing: what the published models expect of their images.
        width: of what enters the head, in hidden sizes.
        any_size: whether the position embedding is resampled to the size of the images in every forward pass.
        ignored_tensors: how names of tensors begin that published files have and the classifier has not.
        untrained: how names of parameters begin that the classifier has and its logits do not depend on.
    """

    preprocessing: dict[str, Any] = field(default_factory=dict)
    width: int = 1
    any_size: bool = False
    ignored_tensors: tuple[str, ...] = ("pooler.",)
    untrained: tuple[str, ...] = ()
