"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): 32x32 colour images, downloaded when first used."""

from __future__ import annotations

from dataclasses import dataclass
from http.client import HTTPException

from mame_lab.data.dataset import ImageDataset
from mame_lab.data.splits import Splits
from mame_lab.errors import MameLabError

VAL_IMAGES = 5000


@dataclass
class Cifar10(ImageDataset):
    """45000 train, 5000 val (cut from the published training images, always the same), 10000 test.

    Args:
        root: folder of the archive; it is downloaded to there unless its files are there already.
    """

    name: str = "cifar10"
    root: str = "data"

    def splits(self) -> Splits:
        import torch
        from torch.utils.data import Subset
        from torchvision import datasets

        torchvision_class = getattr(datasets, self.name.upper())
        try:
            seen = torchvision_class(self.root, train=True, download=True)
            test = torchvision_class(self.root, train=False)
        except (OSError, RuntimeError, HTTPException) as error:
            raise MameLabError(
                f"dataset.root={self.root} lacks {self.name} and its download failed ({error}): "
                f"put {torchvision_class.filename} there, or choose dataset=digits"
            ) from error
        order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(0)).tolist()
        return Splits(Subset(seen, order[:-VAL_IMAGES]), Subset(seen, order[-VAL_IMAGES:]), test, list(seen.classes))


@dataclass
class Cifar100(Cifar10):
    """CIFAR-100 with its 100 fine labels; splits and settings as of `Cifar10`."""

    name: str = "cifar100"
