"""Any folder of images, without classes."""

from __future__ import annotations

from dataclasses import dataclass

from mame_lab.data.folders import ImageFiles, LeftOut, dataset_root, image_paths
from mame_lab.data.imagefolder import ImageFolder
from mame_lab.data.splits import Splits, stratified_split
from mame_lab.errors import MameLabError


@dataclass
class Unlabelled(ImageFolder):
    """Images directly in one folder, for what needs no labels: fidelity, cost and speed.

    All have the label 0, and none is for training. Some of them, drawn at random, are val, the others are test.

    Args:
        root: the folder, which holds the images themselves.
        val_fraction: share of them that becomes val.
    """

    name: str = "unlabelled"

    def splits(self) -> Splits:
        root = dataset_root(self.root, "images")
        left_out = LeftOut()
        images = ImageFiles([(path, 0) for path in image_paths(root, left_out)], [root.name])
        left_out.announce("dataset.root", root, ", directly in it")
        if len(images) < 2:
            raise MameLabError(f"dataset.root={root} holds fewer than 2 images: put some directly into it")
        rest, held = stratified_split([0] * len(images), self.val_fraction, self.split_seed)
        return Splits(None, images.subset(held), images.subset(rest), images.classes)
