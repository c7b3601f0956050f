"""Crops of the photos that scikit-image and scikit-learn ship: natural images with no download."""

from __future__ import annotations

import random
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from mame_lab.data.dataset import ImageDataset
from mame_lab.data.images import read_rgb
from mame_lab.data.splits import Splits
from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from PIL.Image import Image

SKIMAGE, SKLEARN = "skimage.data", "sklearn.datasets.images"

# Package and file name.
SCENES = [
    (SKIMAGE, "astronaut.png"),
    (SKIMAGE, "camera.png"),
    (SKIMAGE, "chelsea.png"),
    (SKLEARN, "china.jpg"),
    (SKIMAGE, "coffee.png"),
    (SKIMAGE, "coins.png"),
    (SKLEARN, "flower.jpg"),
    (SKIMAGE, "hubble_deep_field.jpg"),
    (SKIMAGE, "ihc.png"),
    (SKIMAGE, "moon.png"),
    (SKIMAGE, "motorcycle_left.png"),
    (SKIMAGE, "retina.jpg"),
    (SKIMAGE, "rocket.jpg"),
]
TEXTURES = [(SKIMAGE, "brick.png"), (SKIMAGE, "grass.png"), (SKIMAGE, "gravel.png")]
KINDS = {"all": SCENES + TEXTURES, "scenes": SCENES, "textures": TEXTURES}
LEAST_SIDE = 0.5  # of a crop, over the short side of its photo

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Crops:
    """(RGB image, label) pairs, cut when indexed; `boxes` holds (box, label), label k is `photos[k]`."""

    photos: list[Image]
    boxes: list[tuple[Box, int]]

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        box, label = self.boxes[index]
        return self.photos[label].crop(box), label


@dataclass
class SamplePhotos(ImageDataset):
    """Random square crops of 16 photos, to see what merging does to natural images; the class is the photo.

    Crops of one photo overlap, between splits too: accuracy only says that a photo is recognised, so read the fidelity.
    The crops of a photo are the same in every kind, and fewer of them are the first of more.

    Args:
        kind: "scenes" (13 photos), "textures" (brick, grass, gravel) or "all".
        crops: from each photo in each of train, val and test.
        crop_seed: which crops these are.
    """

    name: str = "sample_photos"
    num_workers: int | None = 0
    kind: str = "all"
    crops: int = 16
    crop_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise MameLabError(f"dataset.kind={self.kind} is unknown: choose one of {', '.join(KINDS)}")
        if self.crops < 1:
            raise MameLabError(f"dataset.crops={self.crops} is not positive: set it to 1 or more")

    def splits(self) -> Splits:
        classes = [filename.split(".")[0] for _, filename in KINDS[self.kind]]
        photos = [read_photo(package, filename) for package, filename in KINDS[self.kind]]
        train, val, test = (self._crops(photos, classes, split) for split in ("train", "val", "test"))
        return Splits(train, val, test, classes)

    def _crops(self, photos: list[Image], classes: list[str], split: str) -> Crops:
        """The first crop of every photo, then the second of every photo, ..."""
        generators = [random.Random(f"{self.crop_seed} {split} {name}") for name in classes]
        boxes = []
        for _ in range(self.crops):
            for label, (photo, generator) in enumerate(zip(photos, generators, strict=True)):
                boxes.append((_box(photo.size, generator), label))
        return Crops(photos, boxes)


def read_photo(package: str, filename: str) -> Image:
    """One of `KINDS`, as RGB.

    Raises:
        MameLabError: the installed package lacks it.
    """
    try:
        with (files(package) / filename).open("rb") as file:
            return read_rgb(file)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        distribution = "scikit-image" if package == SKIMAGE else "scikit-learn"
        raise MameLabError(
            f"dataset=sample_photos needs {filename}, which the installed {distribution} lacks: "
            f"install a version of {distribution} that ships it, or choose another dataset"
        ) from error


def _box(size: tuple[int, int], generator: random.Random) -> Box:
    """A square of random side and place within a photo of width and height `size`."""
    side = generator.randint(round(LEAST_SIDE * min(size)), min(size))
    left, top = (generator.randint(0, length - side) for length in size)
    return left, top, left + side, top + side
