"""Images on disk: a folder that holds one sub-folder a class, with the images directly in it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mame_lab.data.splits import Splits
from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")
CLASS_FOLDERS = "one folder per class, or train and val folders of that kind"


@dataclass(frozen=True)
class ImageFiles:
    """(RGB image, label) pairs, decoded when indexed; `files` holds (path, label), label k is `classes[k]`."""

    files: list[tuple[str, int]]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        from PIL import Image

        path, label = self.files[index]
        try:
            with Image.open(path) as image:
                return image.convert("RGB"), label
        except Exception as error:  # Pillow meets broken files with OSError, SyntaxError, ValueError, struct.error, ...
            raise MameLabError(f"image {path} cannot be read ({error}): replace or delete the file") from error

    def sources(self) -> list[str]:
        """The files that it reads."""
        return [path for path, _ in self.files]

    def subset(self, indices: Iterable[int]) -> ImageFiles:
        return ImageFiles([self.files[i] for i in indices], self.classes)


def dataset_root(root: str | None, holding: str = CLASS_FOLDERS) -> Path:
    """The folder that `dataset.root` names; `holding` says what it should hold.

    Raises:
        MameLabError: if it is not set or is not a folder.
    """
    wanted = f"set dataset.root to a folder that holds {holding}"
    if root is None:
        raise MameLabError(f"dataset.root is not set: {wanted}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        fault = "is not a folder" if folder.exists() else "does not exist"
        raise MameLabError(f"dataset.root={root} {fault}: {wanted}")
    return folder


def list_images(folder: Path) -> ImageFiles:
    """The images of the class folders in `folder`; classes are sorted by name and hidden files are left out.

    The images come in a fixed mixed order, whatever the file system's is, so that their first batches hold all classes.

    Raises:
        MameLabError: if there is no class folder, or one holds no image.
    """
    class_folders = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not class_folders:
        raise MameLabError(f"{folder} holds no class folders: put the images of each class into a folder of its own")
    files = [(path, label) for label, class_folder in enumerate(class_folders) for path in _images_in(class_folder)]
    random.Random(0).shuffle(files)
    return ImageFiles(files, [class_folder.name for class_folder in class_folders])


def _images_in(class_folder: Path) -> list[str]:
    paths = image_paths(class_folder)
    if not paths:
        raise MameLabError(f"class folder {class_folder} holds no images: put some directly into it, or delete it")
    return paths


def image_paths(folder: Path) -> list[str]:
    """The images directly in `folder`, sorted by name, without hidden files."""
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(EXTENSIONS) and name[0] != ".")
    return [os.path.join(folder, name) for name in names]


def fixed_splits(root: Path) -> Splits:
    """The images of `root/val`, and of `root/train` and `root/test` where they exist; without `test`, val is test.

    Raises:
        MameLabError: where the class folders of one split are not those of another.
    """
    found = list_splits(root, [name for name in ("val", "train", "test") if (root / name).is_dir()])
    val = found["val"]
    return Splits(found.get("train"), val, found.get("test", val), val.classes)


def list_splits(root: Path, names: list[str]) -> dict[str, ImageFiles]:
    """The images of these folders of `root`.

    Raises:
        MameLabError: where the class folders of one are not those of another.
    """
    found = {name: list_images(root / name) for name in names}
    first, *others = names
    for other in others:
        unshared = sorted(set(found[other].classes) ^ set(found[first].classes))
        if unshared:
            here, there = (first, other) if unshared[0] in found[first].classes else (other, first)
            raise MameLabError(
                f"dataset.root={root}: class '{unshared[0]}' is in {here} but not in {there}: "
                "give all splits the same class folders"
            )
    return found
