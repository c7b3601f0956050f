"""WebDataset shards: tar files that hold KEY.jpg (or .png, ...) beside KEY.cls, the number of its class.

webdataset's own reader streams: the order of its images depends on the number of processes, and the middle of an epoch
is hard to come back to. Here it says once which files make a sample; then each image is read from its place in its tar
file, so that shards are shuffled, shared among processes and resumed just as class folders are.
"""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO, FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mame_lab.data.dataset import ImageDataset
from mame_lab.data.images import read_rgb
from mame_lab.data.shard_index import find_images
from mame_lab.data.splits import Splits
from mame_lab.data.text_files import read_names
from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from PIL.Image import Image

OPEN_SHARDS = 256  # at a time, in each process: systems allow 1024 files or so


@dataclass(frozen=True)
class ShardedImages:
    """(RGB image, label) pairs, read and decoded when indexed; `places_N4` as of `shard_index`."""

    shards: list[str]
    places_N4: np.ndarray

    def __len__(self) -> int:
        return len(self.places_N4)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        shard, offset, size, label = self.places_N4[index].tolist()
        try:
            content = os.pread(_file(self.shards[shard]).fileno(), size, offset)
            return read_rgb(BytesIO(content)), label
        except Exception as error:  # Pillow meets broken files with OSError, SyntaxError, ValueError, struct.error, ...
            raise MameLabError(f"image {self.name(index)} cannot be read ({error}): write the shard again") from error

    def sources(self) -> list[str]:
        """The files that it reads."""
        return self.shards

    def name(self, index: int) -> str:
        """What to call an image in a message."""
        shard, offset = self.places_N4[index, :2].tolist()
        try:
            header = os.pread(_file(self.shards[shard]).fileno(), tarfile.BLOCKSIZE, offset - tarfile.BLOCKSIZE)
            name = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except (OSError, tarfile.TarError):
            name = f"at byte {offset}"
        return f"{name} of {self.shards[shard]}"


@dataclass
class Shards(ImageDataset):
    """Images in WebDataset shards, in a fixed mixed order; the first use indexes the shards.

    Args:
        root: folder with `val`, `train` (missing: evaluation only) and `test` (missing: val is test), each a folder of
            tar files, and with classes.txt, the name of a class in each line (missing: their numbers are the names).
    """

    name: str = "shards"
    root: str | None = None

    def splits(self) -> Splits:
        root = Path(self.root or "").expanduser()
        if self.root is None or not (root / "val").is_dir():
            raise MameLabError(
                f"dataset.root={self.root} holds no val folder: set dataset.root to a folder that holds val and, to "
                f"train, train, each a folder of tar files"
            )
        images = {split: _images(root / split) for split in ("train", "val", "test") if (root / split).is_dir()}
        classes = _classes(root / "classes.txt", list(images.values()))
        return Splits(images.get("train"), images["val"], images.get("test", images["val"]), classes)


def _images(folder: Path) -> ShardedImages:
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise MameLabError(f"{folder} holds no shards: put tar files of KEY.jpg and KEY.cls directly into it")
    _file.cache_clear()  # A file that was replaced is still the old one where it is open.
    places_N4 = find_images(shards)
    if not len(places_N4):
        raise MameLabError(f"the shards of {folder} hold no samples: put KEY.jpg and KEY.cls into them")
    mixed_N = np.random.default_rng(0).permutation(len(places_N4))
    return ShardedImages([str(shard) for shard in shards], places_N4[mixed_N])


def _classes(path: Path, splits: list[ShardedImages]) -> list[str]:
    """The names of the classes: the lines of a file, or the numbers up to the largest label."""
    if not path.exists():
        return [str(label) for label in range(1 + max(images.places_N4[:, 3].max() for images in splits))]
    classes = read_names(path)
    for images in splits:
        last = int(images.places_N4[:, 3].argmax())
        label = images.places_N4[last, 3]
        if label >= len(classes):
            raise MameLabError(
                f"image {images.name(last)} is of class {label}, and {path} has {len(classes)} lines, the first for "
                f"class 0: give it a line for each class"
            )
    return classes


@lru_cache(OPEN_SHARDS)
def _file(path: str) -> FileIO:
    return FileIO(path)
