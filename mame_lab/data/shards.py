"""WebDataset shards: tar files that hold KEY.jpg (or .png, ...) beside KEY.cls, the number of its class.

webdataset's own reader streams, so the order of its images depends on the number of processes, and where a run stops
is hard to come back to. Here its rules say once which files make a sample; then every image is read by its place in
its tar file, so that shards are shuffled, shared among processes and resumed just as class folders are.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np

from mame_lab.data.dataset import ImageDataset
from mame_lab.data.folders import EXTENSIONS
from mame_lab.data.splits import Splits
from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from PIL.Image import Image

INDEX = "index.npz"
END = bytes(2 * tarfile.BLOCKSIZE)  # of every whole tar file
OPEN_SHARDS = 256  # in each process: there may be more shards than files that can be open


@dataclass(frozen=True)
class ShardedImages:
    """(RGB image, label) pairs, read when indexed from N places: (shard, offset and size in bytes, label)."""

    shards: list[str]
    places_N4: np.ndarray

    def __len__(self) -> int:
        return len(self.places_N4)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        from PIL import Image

        shard, offset, size, label = self.places_N4[index].tolist()
        try:
            content = os.pread(_file(self.shards[shard]).fileno(), size, offset)
            return Image.open(BytesIO(content)).convert("RGB"), label
        except Exception as error:  # Pillow meets broken files with OSError, SyntaxError, ValueError, struct.error, ...
            raise MameLabError(f"{self.name(index)} cannot be read ({error}): write the shard again") from error

    def name(self, index: int) -> str:
        """The image, for a message."""
        shard, offset = self.places_N4[index, :2].tolist()
        header = os.pread(_file(self.shards[shard]).fileno(), tarfile.BLOCKSIZE, offset - tarfile.BLOCKSIZE)
        return f"{tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape').name} of {self.shards[shard]}"


@dataclass
class Shards(ImageDataset):
    """Images in WebDataset shards.

    Which bytes of the tar files are which image is found out once and kept beside them as index.npz, if that can be
    written; a shard that changes in size or time is indexed anew. The images come in a fixed mixed order.

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
        folders = {split: root / split for split in ("train", "val", "test") if (root / split).is_dir()}
        images = {split: _images(folder) for split, folder in folders.items()}
        classes = _classes(root / "classes.txt", images)
        return Splits(images.get("train"), images["val"], images.get("test", images["val"]), classes)


def _images(folder: Path) -> ShardedImages:
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise MameLabError(f"{folder} holds no shards: put tar files of KEY.jpg and KEY.cls directly into it")
    stamps = np.array([f"{shard.name} {shard.stat().st_size} {shard.stat().st_mtime_ns}" for shard in shards])
    places_N4 = _read_index(folder / INDEX, stamps)
    if places_N4 is None:
        places_N4 = _all_places(shards)
        _write_index(folder / INDEX, stamps, places_N4)
    if not len(places_N4):
        raise MameLabError(f"the shards of {folder} hold no images: put tar files of KEY.jpg and KEY.cls into it")
    mixed_N = np.random.default_rng(0).permutation(len(places_N4))
    return ShardedImages([str(shard) for shard in shards], places_N4[mixed_N])


def _classes(path: Path, images: dict[str, ShardedImages]) -> list[str]:
    """The names of the classes: the lines of a file, or numbers up to the largest label."""
    if not path.exists():
        return [str(label) for label in range(1 + max(split.places_N4[:, 3].max() for split in images.values()))]
    classes = path.read_text(encoding="utf-8").split("\n")
    classes = [name.strip() for name in classes if name.strip()]
    for split in images.values():
        worst = int(split.places_N4[:, 3].argmax())
        if split.places_N4[worst, 3] >= len(classes):
            raise MameLabError(
                f"{split.name(worst)} is of class {split.places_N4[worst, 3]}, but {path} names {len(classes)} classes, "
                f"numbered from 0: give it a line for every class"
            )
    return classes


def _read_index(path: Path, stamps: np.ndarray) -> np.ndarray | None:
    """The places of the images, if they are known and the shards have not changed since."""
    try:
        with np.load(path) as index:
            return index["places"] if np.array_equal(index["stamps"], stamps) else None
    except (OSError, KeyError, ValueError, EOFError, BadZipFile):
        return None


def _write_index(path: Path, stamps: np.ndarray, places_N4: np.ndarray) -> None:
    """Keep the places for the next time; other processes may do the same at the same moment."""
    partial = path.with_suffix(f".{uuid4().hex}")
    try:
        with partial.open("wb") as file:
            np.savez(file, stamps=stamps, places=places_N4)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)


def _all_places(shards: list[Path]) -> np.ndarray:
    """The places of the images of all shards, in order, as `ShardedImages` has them."""
    from rich.console import Console
    from rich.progress import track

    console = Console()
    bar = track(
        shards, f"indexing {shards[0].parent}", console=console, transient=True, disable=not console.is_terminal
    )
    places = [(number, *place) for number, shard in enumerate(bar) for place in _places(shard)]
    return np.array(places, dtype=np.int64).reshape(-1, 4)


def _places(shard: Path) -> Iterator[tuple[int, int, int]]:
    """Offset, size and label of every image of a shard."""
    try:
        from webdataset.tariterators import group_by_keys
    except ImportError as error:
        raise MameLabError("dataset=shards needs webdataset: pip install 'mame_lab[shards]'") from error
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            files = ({"fname": member.name, "data": member, "__url__": ""} for member in tar if member.isreg())
            for sample in group_by_keys(files):
                yield _place(shard, sample, tar)
            # tarfile takes the first broken header for the end, and so a truncated shard for a whole one.
            file.seek(tar.offset)
            if file.read(len(END)) != END:
                raise tarfile.ReadError(f"no tar header at byte {tar.offset}")
    except MameLabError:
        raise
    except (OSError, tarfile.TarError, ValueError) as error:
        raise MameLabError(f"{shard} is no whole tar file ({error.args[0]}): write the shard again") from error


def _place(shard: Path, sample: dict[str, Any], tar: tarfile.TarFile) -> tuple[int, int, int]:
    image = next((sample[extension[1:]] for extension in EXTENSIONS if extension[1:] in sample), None)
    key, said = f"sample {sample['__key__']} of {shard}", sample.get("cls")
    if image is None or said is None:
        held = ", ".join(name for name in sample if not name.startswith("__"))
        raise MameLabError(
            f"{key} lacks an image (.jpg, .png, ...) or its class (.cls), it holds {held}: write it again"
        )
    content = tar.extractfile(said).read()  # pyright: ignore[reportOptionalMemberAccess]
    if not content.strip().isdigit():
        raise MameLabError(
            f"{key}: its .cls holds {content[:20]!r} where the number of a class belongs: write it again"
        )
    return image.offset_data, image.size, int(content)


@lru_cache(OPEN_SHARDS)
def _file(path: str) -> FileIO:
    return open(path, "rb", buffering=0)
