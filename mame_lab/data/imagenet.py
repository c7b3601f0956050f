"""ImageNet-1k (ILSVRC-2012) in class folders, in the class order of pretrained heads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

from mame_lab.data.dataset import ImageDataset
from mame_lab.data.folders import dataset_root, fixed_splits
from mame_lab.data.splits import Splits
from mame_lab.errors import MameLabError


@dataclass
class ImageNet(ImageDataset):
    """ImageNet-1k; classes are WordNet ids, and val is test, as is usual.

    Args:
        root: folder with `val` and, for training or k-NN, `train`; each holds the 1000 class folders `n########`.
    """

    name: str = "imagenet"
    root: str | None = None

    def splits(self) -> Splits:
        from timm.data.imagenet_info import ImageNetInfo

        root = dataset_root(self.root)
        if not (root / "val").is_dir():
            raise MameLabError(f"dataset.root={root} holds no val folder: ImageNet needs val and, to train, train")
        splits = fixed_splits(root)
        for found, expected in zip_longest(splits.classes, ImageNetInfo().label_names()):
            if found != expected:
                raise MameLabError(
                    f"dataset.root={root} is not ImageNet-1k: of its {len(splits.classes)} class folders the first "
                    f"wrong one is {found} where {expected} belongs: name the 1000 folders by their WordNet ids"
                )
        return splits
