"""From a PIL image, or the frames of a clip, to the tensor that a model was trained on: resize, crop, normalise.

A clip is x_TCHW: T frames, C channels, H x W pixels; V views of it. All its frames are treated alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from torch import nn
    from torchvision.transforms import v2

SUPPORTED = {"crop_mode": ("center", "squash"), "interpolation": ("bicubic", "bilinear", "lanczos", "nearest")}


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images, as in timm's data configuration of the model.

    Args:
        size: height and width of the model's input, in pixels.
        mean, std: of the pixels between 0 and 1, one number a channel.
        interpolation: "bicubic", "bilinear", "lanczos" or "nearest".
        crop_pct: side of the central crop over the side of the resized image.
        crop_mode: "center" keeps the aspect ratio and cuts off the long side's ends, "squash" keeps all and distorts.
        frames: of a clip, for a model that takes videos; None: it takes images.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str
    frames: int | None = None

    def __post_init__(self) -> None:
        for key, supported in SUPPORTED.items():
            value = getattr(self, key)
            if value not in supported:
                raise MameLabError(
                    f"the model's {key}={value} is not supported: choose a model with {' or '.join(supported)}"
                )

    def evaluation(self) -> v2.Compose:
        """The transform to a float32 tensor that timm's evaluation uses, of a PIL image or uint8 clip [T, C, H, W]."""
        from torchvision.transforms import v2

        return v2.Compose([self._resize(), v2.CenterCrop(self.size), *self._to_tensor()])

    def crops(self, count: int) -> v2.Compose:
        """The same from a uint8 clip to x_VTCHW: `count` crops, spread evenly over the long side, instead of one."""
        from torchvision.transforms import v2

        from mame_lab.data.clips import crops

        cut = v2.Lambda(partial(crops, size=self.size, count=count))
        return v2.Compose([self._resize(), cut, *self._to_tensor()])

    def training(self, augment: str, min_crop_area: float) -> v2.Compose:
        """The transform from a PIL image to a float32 [C, H, W] tensor, see `ImageDataset` for the arguments."""
        from torchvision.transforms import InterpolationMode, v2

        if augment == "none":
            return self.evaluation()
        mode = InterpolationMode(self.interpolation)
        crop = v2.RandomResizedCrop(self.size, scale=(min_crop_area, 1.0), interpolation=mode)
        flip = {"crop": [], "crop_flip": [v2.RandomHorizontalFlip()]}[augment]
        return v2.Compose([crop, *flip, *self._to_tensor()])

    def _resize(self) -> Callable:
        from timm.data.transforms import ResizeKeepRatio
        from torchvision.transforms import InterpolationMode, v2

        height, width = (math.floor(side / self.crop_pct) for side in self.size)
        mode = InterpolationMode(self.interpolation)
        if self.crop_mode == "squash":
            return v2.Resize((height, width), mode)
        if height == width:
            return v2.Resize(height, mode)
        return ResizeKeepRatio((height, width), interpolation=self.interpolation)

    def _to_tensor(self) -> list[nn.Module]:
        import torch
        from torchvision.transforms import v2

        return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(self.mean), list(self.std))]
