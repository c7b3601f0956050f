"""Any folder of class folders."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mame_lab.data.dataset import ImageDataset
from mame_lab.data.folders import ImageFiles, dataset_root, fixed_splits, list_splits
from mame_lab.data.splits import Splits, stratified_split
from mame_lab.errors import MameLabError


@dataclass
class ImageFolder(ImageDataset):
    """Images in class folders: the files directly in them that Pillow reads. The log tells what else is there.

    A root with a `val` folder is taken as it is: `val`, `train` (missing: evaluation only) and `test` (missing: val is
    test). Of a root with `train` and `test` alone, val is cut from train, every class alike. Any other root holds the
    class folders themselves and is split in the same way, with val as test.

    Args:
        root: the folder.
        val_fraction: share of each class that becomes val where it is cut.
        split_seed: which images these are.
    """

    name: str = "imagefolder"
    root: str | None = None
    val_fraction: float = 0.2
    split_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.val_fraction < 1:
            raise MameLabError(f"dataset.val_fraction={self.val_fraction} is out of range: set it between 0 and 1")

    def splits(self) -> Splits:
        root = dataset_root(self.root)
        if (root / "val").is_dir():
            return fixed_splits(root)
        folders = {child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")}
        if folders == {"train", "test"}:
            found = list_splits(root, ["train", "test"])
            train, val = self._cut(found["train"], root / "train")
            return Splits(train, val, found["test"], val.classes)
        if folders and folders <= {"train", "test"}:
            raise MameLabError(f"dataset.root={root} has no val beside train or test: add it, or give train itself")
        images = list_splits(root, ["."])["."]
        train, val = self._cut(images, root)
        if len(images.classes) < 2:
            raise MameLabError(f"dataset.root={root} holds one class folder alone, {images.classes[0]}: add a second")
        return Splits(train, val, val, images.classes)

    def _cut(self, images: ImageFiles, root: Path) -> tuple[ImageFiles, ImageFiles]:
        """The images of `root` in two parts, of which the second becomes val."""
        labels = [label for _, label in images.files]
        label, count = min(Counter(labels).items(), key=lambda item: item[1])
        if count < 2:
            raise MameLabError(f"class folder {root / images.classes[label]} holds 1 image: a split needs 2 or more")
        rest, held = stratified_split(labels, self.val_fraction, self.split_seed)
        return images.subset(rest), images.subset(held)
