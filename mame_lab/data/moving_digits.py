"""Handwritten digits that move: videos with no download, in which only the motion tells the class.

N digits, T frames, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mame_lab.data.dataset import VideoDataset
from mame_lab.data.digits import Digits
from mame_lab.data.splits import Splits
from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

# Pixels downwards and to the right in each frame.
DIRECTIONS = {
    "north": (-2, 0),
    "north-east": (-2, 2),
    "east": (0, 2),
    "south-east": (2, 2),
    "south": (2, 0),
    "south-west": (2, -2),
    "west": (0, -2),
    "north-west": (-2, -2),
}
CANVAS, DIGIT = 32, 16  # pixels of a side
LAP = CANVAS // 2  # frames, after which a digit is back


@dataclass(frozen=True)
class MovingDigit:
    """A digit that goes round a canvas whose opposite edges meet, in one lap.

    Args:
        image: the digit, `DIGIT` pixels wide and high.
        start: row and column of its corner in the first frame.
        direction: what it moves by in each frame.
    """

    image: Image
    start: tuple[int, int]
    direction: tuple[int, int]

    def __len__(self) -> int:
        return LAP

    def read(self, indices: Sequence[int]) -> Tensor:
        import torch
        from torchvision.transforms.v2.functional import pil_to_tensor

        x_CHW = torch.zeros(3, CANVAS, CANVAS, dtype=torch.uint8)
        x_CHW[:, :DIGIT, :DIGIT] = pil_to_tensor(self.image)
        places = [[a + index * b for a, b in zip(self.start, self.direction, strict=True)] for index in indices]
        return torch.stack([x_CHW.roll(place, (1, 2)) for place in places])


@dataclass
class MovingDigits(VideoDataset):
    """Digits of `Digits` (those of its test images in no other split) move in 8 directions; the direction is the class.

    A digit moves in all directions from the same random start, and what leaves at an edge comes in at the other, so a
    single frame is as likely in one class as in any other.

    Args:
        digits: in each of train, val and test, at most; each makes 8 videos.
    """

    name: str = "moving_digits"
    batch_size: int = 16
    num_workers: int | None = 0
    augment: str = "crop"
    min_crop_area: float = 0.75
    digits: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment == "crop_flip":
            raise MameLabError(
                "dataset.augment=crop_flip turns the directions of dataset=moving_digits round: take crop"
            )
        if self.digits < 1:
            raise MameLabError(f"dataset.digits={self.digits} is not positive: set it to 1 or more")

    def splits(self) -> Splits:
        digits = Digits().splits()
        parts = enumerate((digits.train, digits.val, digits.test))
        train, val, test = (self._videos(images, seed) for seed, images in parts)
        return Splits(train, val, test, list(DIRECTIONS), {"views": f"{self.clips}x{self.crops}"})

    def _videos(self, digits: Any, seed: int) -> list[tuple[MovingDigit, int]]:
        """Digit by digit, all directions of each."""
        import numpy as np

        images = [image.resize((DIGIT, DIGIT)) for image, _ in digits[: self.digits]]
        starts_N2 = np.random.default_rng(seed).integers(CANVAS, size=(len(images), 2)).tolist()
        return [
            (MovingDigit(image, tuple(start_2), direction), label)
            for image, start_2 in zip(images, starts_N2, strict=True)
            for label, direction in enumerate(DIRECTIONS.values())
        ]
