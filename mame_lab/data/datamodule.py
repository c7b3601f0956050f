"""Batches `(x_BCHW, y_B)` of a dataset, in the preprocessing of a model; of videos `(x_BTCHW, y_B)`.

B images in a batch, T frames, C channels, H x W pixels; x is float32, y is int64. V views of a test video.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from mame_lab.data.dataset import ImageDataset, VideoDataset
from mame_lab.data.preprocessing import Preprocessing
from mame_lab.data.samplers import EvaluationBatches, TrainingBatches
from mame_lab.data.splits import LabelledImages, Splits
from mame_lab.errors import MameLabError

Transform = Callable[[Any], torch.Tensor]


class TransformedImages(Dataset):
    """(x_CHW, label) pairs, of videos (x_TCHW, label) or (x_VTCHW, label): labelled images under a transform."""

    def __init__(self, images: LabelledImages, transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), label


class AugmentedImages(Dataset):
    """The same under a random transform; an item is the index of an image and the seed of what is random."""

    def __init__(self, images: LabelledImages, transform: Transform) -> None:
        self.transformed = TransformedImages(images, transform)

    def __len__(self) -> int:
        return len(self.transformed)

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, int]:
        index, seed = item
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(seed)
            return self.transformed[index]


class LateLoader(DataLoader):
    """Begins when its first batch is asked for: Lightning wants an iterator before it restores where a run was."""

    def __iter__(self) -> Any:
        yield from super().__iter__()


class ImageData(LightningDataModule):
    """The loaders of a dataset. The images are read or listed once, when first needed.

    Args:
        dataset: which images, and in which batches.
        preprocessing: what the model wants.
        seed: of the order and the augmentation of training images, which depend on nothing else but the epoch.

    Raises:
        MameLabError: the model takes videos and the dataset holds images, or the other way round.
    """

    def __init__(self, dataset: ImageDataset, preprocessing: Preprocessing, seed: int = 0) -> None:
        super().__init__()
        takes = "images" if preprocessing.frames is None else "videos"
        if dataset.modality != takes:
            raise MameLabError(
                f"dataset={dataset.name} holds {dataset.modality} and the model takes {takes}: choose a dataset of "
                f"{takes}, or a model that takes {dataset.modality}"
            )
        self.dataset = dataset
        self.preprocessing = preprocessing
        self.seed = seed

    @cached_property
    def splits(self) -> Splits:
        return self.dataset.splits()

    @property
    def classes(self) -> list[str]:
        """Names of the labels 0, 1, ..."""
        return self.splits.classes

    def train_dataloader(self) -> DataLoader:
        """Augmented and shuffled, see `TrainingBatches`; a run that is resumed goes on after its last batch.

        Raises:
            MameLabError: if the dataset has no training images.
        """
        images = AugmentedImages(self._training_images(), self.dataset.training(self.preprocessing))
        return self._loader(images, TrainingBatches(len(images), self.dataset.batch_size, self.seed, self._progress))

    def bank_dataloader(self) -> DataLoader:
        """The training images in fixed order under the evaluation transform, for k-NN; raises as `train_dataloader`."""
        return self._evaluation_loader(self._training_images())

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self.splits.val)

    def test_dataloader(self) -> DataLoader:
        """In a batch of videos x is (B * V)TCHW: the views of the first one, then those of the next."""
        if not isinstance(self.dataset, VideoDataset):
            return self._evaluation_loader(self.splits.test)
        videos = TransformedImages(self.splits.test, self.dataset.views(self.preprocessing))
        return self._loader(videos, EvaluationBatches(len(videos), self.dataset.batch_size), collate_fn=_join_views)

    def sample(self, count: int, split: str = "test") -> tuple[torch.Tensor, torch.Tensor]:
        """A batch of images spread evenly over a split (train, val, test), repeated where it has fewer than `count`."""
        images = TransformedImages(getattr(self.splits, split), self.dataset.evaluation(self.preprocessing))
        indices = torch.linspace(0, len(images) - 1, min(count, len(images))).long().repeat(-(-count // len(images)))
        x_BCHW, y_B = zip(*(images[i] for i in indices[:count].tolist()), strict=True)
        return torch.stack(x_BCHW), torch.tensor(y_B)

    def _training_images(self) -> LabelledImages:
        if self.splits.train is None:
            raise MameLabError(f"dataset={self.dataset.name} has no training images: add them to dataset.root as train")
        return self.splits.train

    def _evaluation_loader(self, images: LabelledImages) -> DataLoader:
        transformed = TransformedImages(images, self.dataset.evaluation(self.preprocessing))
        return self._loader(transformed, EvaluationBatches(len(images), self.dataset.batch_size))

    def _loader(self, images: Dataset, batches: Any, **options: Any) -> DataLoader:
        workers = self.dataset.num_workers
        workers = min(usable_cpus(), 8) if workers is None else workers
        return LateLoader(
            images,
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def _progress(self) -> tuple[int, int]:
        """The epoch that is trained, and its batches that are done."""
        if self.trainer is None or not self.trainer.training:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.processed


def _join_views(videos: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    x_VTCHW, y_B = zip(*videos, strict=True)
    return torch.cat(x_VTCHW), torch.tensor(y_B)


def usable_cpus() -> int:
    """CPUs that this process may run on: fewer than the machine has, in a container or under a scheduler."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
