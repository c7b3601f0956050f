"""The settings that every dataset of images shares, and every one of videos."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from mame_lab.data.paths import refuse_empty
from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from mame_lab.data.preprocessing import Preprocessing
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

    modality: ClassVar[str] = "images"
    # Settings that the feature cache leaves out: they change no sample of train or val, or it follows what they say
    # otherwise, as augmentation and the image files.
    uncached: ClassVar[frozenset[str]] = frozenset(
        {"name", "batch_size", "num_workers", "root", "augment", "min_crop_area"}
    )

    def __post_init__(self) -> None:
        refuse_empty(root=getattr(self, "root", None))
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

    def training(self, preprocessing: Preprocessing) -> Callable[[Any], Any]:
        """What makes an image the input of a model in training, at random."""
        return preprocessing.training(self.augment, self.min_crop_area)

    def evaluation(self, preprocessing: Preprocessing) -> Callable[[Any], Any]:
        """What makes an image the input of a model where it is judged."""
        return preprocessing.evaluation()


@dataclass
class VideoDataset(ImageDataset):
    """Settings of a dataset of videos. A model sees clips of them, of as many frames as it takes.

    A clip of training starts anywhere, unless nothing is augmented; one of validation is in the middle. In the test the
    probabilities of several views of a video are averaged.

    Args:
        frame_stride: from one frame of a clip to the next.
        clips: of a test video, spread evenly over it.
        crops: of each of them, spread evenly over its longer side.
    """

    frame_stride: int = 1
    clips: int = 1
    crops: int = 1

    modality: ClassVar[str] = "videos"
    uncached: ClassVar[frozenset[str]] = ImageDataset.uncached | {"clips", "crops"}

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("frame_stride", "clips", "crops"):
            if getattr(self, key) < 1:
                raise MameLabError(f"dataset.{key}={getattr(self, key)} is not positive: set it to 1 or more")

    def training(self, preprocessing: Preprocessing) -> Callable[[Any], Any]:
        from mame_lab.data.clips import random_clip

        if self.augment == "none":
            return self.evaluation(preprocessing)
        return partial(random_clip, transform=super().training(preprocessing), **self._clip(preprocessing))

    def evaluation(self, preprocessing: Preprocessing) -> Callable[[Any], Any]:
        from mame_lab.data.clips import central_clip

        return partial(central_clip, transform=super().evaluation(preprocessing), **self._clip(preprocessing))

    def views(self, preprocessing: Preprocessing) -> Callable[[Any], Any]:
        """What makes a test video several inputs of a model, x_VTCHW."""
        from mame_lab.data.clips import views

        crops = preprocessing.crops(self.crops)
        return partial(views, clips=self.clips, transform=crops, **self._clip(preprocessing))

    def _clip(self, preprocessing: Preprocessing) -> dict[str, Any]:
        return {"frames": preprocessing.frames, "stride": self.frame_stride}
