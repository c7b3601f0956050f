"""The settings that every image dataset shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from mame_lab.data.splits import Splits

AUGMENTS = ("none", "crop", "crop_flip")


@dataclass
class ImageDataset(ABC):
    """Settings of a dataset.

    Args:
        name: which dataset it is, a key of `mame_lab.data.DATASETS`.
        batch_size: images in a batch, in training and in evaluation.
        num_workers: processes that load images; None takes the usable CPUs, at most 8.
        augment: training augmentation: "none", "crop" (random resized crop) or "crop_flip" (and horizontal flip).
        min_crop_area: the least share of the image that a random crop covers.
    """

    name: str
    batch_size: int = 64
    num_workers: int | None = None
    augment: str = "crop_flip"
    min_crop_area: float = 0.35

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise MameLabError(f"dataset.batch_size={self.batch_size} is not positive: set it to 1 or more")
        if self.num_workers is not None and self.num_workers < 0:
            raise MameLabError(f"dataset.num_workers={self.num_workers} is negative: set it to 0 or more, or to null")
        if self.augment not in AUGMENTS:
            raise MameLabError(f"dataset.augment={self.augment} is unknown: choose one of {', '.join(AUGMENTS)}")
        if not 0 < self.min_crop_area <= 1:
            raise MameLabError(f"dataset.min_crop_area={self.min_crop_area} is out of range: set it above 0, up to 1")

    @abstractmethod
    def splits(self) -> Splits:
        """Read or list the images.

        Raises:
            MameLabError: where the images are missing or laid out wrongly.
        """
