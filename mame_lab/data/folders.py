"""Images on disk: a folder that holds one sub-folder a class, with the images directly in it."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mame_lab.data.images import extensions, read_rgb
from mame_lab.data.splits import Splits
from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from PIL.Image import Image

CLASS_FOLDERS = "one folder per class, or train and val folders of that kind"
HIDDEN = {"Thumbs.db", "desktop.ini"}  # by Windows, and what begins with a dot
NAMED = 3  # of what is left out, at most
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFiles:
    """(RGB image, label) pairs, decoded when indexed; `files` holds (path, label), label k is `classes[k]`."""

    files: list[tuple[str, int]]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        path, label = self.files[index]
        try:
            return read_rgb(path), label
        except Exception as error:  # Pillow meets broken files with OSError, SyntaxError, ValueError, struct.error, ...
            raise MameLabError(f"image {path} cannot be read ({error}): replace or delete the file") from error

    def sources(self) -> list[str]:
        """The files that it reads."""
        return [path for path, _ in self.files]

    def subset(self, indices: Iterable[int]) -> ImageFiles:
        return ImageFiles([self.files[i] for i in indices], self.classes)


@dataclass
class LeftOut:
    """Paths of what lies among images and is none of them."""

    folders: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def announce(self, key: str, root: Path, place: str = "") -> None:
        """One line in the log, if anything is left out of what `key` names; images lie in this `place`."""
        parts = []
        for kind, paths in (("folder", self.folders), ("file", self.files)):
            if paths:
                some = ", ".join(os.path.relpath(path, root) for path in sorted(paths)[:NAMED])
                more = ", ..." if len(paths) > NAMED else ""
                parts.append(f"{len(paths)} {kind}{'s' * (len(paths) > 1)} ({some}{more})")
        if parts:
            said = " and ".join(parts)
            log.warning("%s=%s leaves out %s: images are files that Pillow reads%s", key, root, said, place)


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


def list_images(folder: Path, left_out: LeftOut) -> ImageFiles:
    """The images of the class folders in `folder`; classes are sorted by name and hidden files are left out.

    The images come in a fixed mixed order, whatever the file system's is, so that their first batches hold all classes.
    Other files in class folders, and folders in these, are added to `left_out`.

    Raises:
        MameLabError: if there is no class folder, or one holds no image.
    """
    class_folders = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not class_folders:
        raise MameLabError(f"{folder} holds no class folders: put the images of each class into a folder of its own")
    files = [
        (path, label) for label, class_folder in enumerate(class_folders) for path in _images_in(class_folder, left_out)
    ]
    random.Random(0).shuffle(files)
    return ImageFiles(files, [class_folder.name for class_folder in class_folders])


def _images_in(class_folder: Path, left_out: LeftOut) -> list[str]:
    paths = image_paths(class_folder, left_out)
    if not paths:
        raise MameLabError(f"class folder {class_folder} holds no images: put some directly into it, or delete it")
    return paths


def image_paths(folder: Path, left_out: LeftOut) -> list[str]:
    """The images directly in `folder`, sorted by name. What else is there, but hidden files, is added to `left_out`."""
    readable = set(extensions())
    paths = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in HIDDEN:
                continue
            is_image = os.path.splitext(entry.name)[1].lower() in readable
            if entry.is_dir(follow_symlinks=not is_image):  # No image is looked at, so that a million takes seconds.
                left_out.folders.append(entry.path)
            else:
                (paths if is_image else left_out.files).append(entry.path)
    return sorted(paths)


def images_below(folder: Path, left_out: LeftOut) -> list[str]:
    """The images in `folder` and in all folders below it, to which no link leads; what else is there as above."""
    here = LeftOut()
    paths = image_paths(folder, here)
    left_out.files += here.files
    for inner in sorted(here.folders):
        if os.path.islink(inner):
            left_out.folders.append(inner)
        else:
            paths += images_below(Path(inner), left_out)
    return paths


def fixed_splits(root: Path) -> Splits:
    """The images of `root/val`, and of `root/train` and `root/test` where they exist; without `test`, val is test.

    Raises:
        MameLabError: where the class folders of one split are not those of another.
    """
    found = list_splits(root, [name for name in ("val", "train", "test") if (root / name).is_dir()])
    val = found["val"]
    return Splits(found.get("train"), val, found.get("test", val), val.classes)


def list_splits(root: Path, names: list[str]) -> dict[str, ImageFiles]:
    """The images of these folders of `root`; the log tells what is left out of their class folders and beside these.

    Raises:
        MameLabError: where the class folders of one are not those of another.
    """
    left_out = LeftOut()
    found = {name: list_images(root / name, left_out) for name in names}
    for folder in {root, *(root / name for name in names)}:
        left_out.files += image_paths(folder, LeftOut())
    left_out.announce("dataset.root", root, ", directly in a class folder")
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
