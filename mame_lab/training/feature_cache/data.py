"""Batches (BlockInput, labels_B) of training and validation, from the cached outputs of frozen blocks.

B batch, K classes; an input is what the model takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from mame_lab.data.datamodule import AugmentedImages, ImageData, LateLoader
from mame_lab.data.samplers import EvaluationBatches, TrainingBatches, seed_of
from mame_lab.errors import MameLabError
from mame_lab.models import family_of
from mame_lab.models.split_forward import BlockInput, Sample, first_trained, join
from mame_lab.training.context import RunContext
from mame_lab.training.feature_cache import fingerprint
from mame_lab.training.feature_cache.compute import Computation, compute_missing
from mame_lab.training.feature_cache.store import Store


class Source(NamedTuple):
    """What is cached of a sample.

    Attributes:
        name: what it is called.
        model: what computes it.
        compute: from a batch of inputs to each sample.
        dtype: on disk.
        parts: what it follows from, beside the inputs.
    """

    name: str
    model: nn.Module
    compute: Callable[[Tensor], Iterable[Sample]]
    dtype: torch.dtype
    parts: dict[str, Any]

    def on(self, trainer: Trainer) -> Callable[[Tensor], list[Sample]]:
        """What computes it on the trainer's device and in its precision; the outcome is on the CPU."""
        device = trainer.strategy.root_device
        self.model.to(device)

        @torch.no_grad()
        def compute(inputs: Tensor) -> list[Sample]:
            with trainer.precision_plugin.forward_context(), _evaluating(self.model):
                return [sample.cpu() for sample in self.compute(inputs.to(device))]

        return compute


class Views(Dataset):
    """(sample, label, a teacher's logits or None) by an index, or by an index and a number that chooses a view."""

    def __init__(self, views: list[Store], teachings: list[Store]) -> None:
        self.views, self.teachings = views, teachings

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Sample, int, Tensor | None]:
        index, number = item if isinstance(item, tuple) else (item, 0)
        view = number % len(self.views)
        sample, label = self.views[view][index]
        return sample, label, self.teachings[view][index].sample.x_NC[0] if self.teachings else None


class CachedData(ImageData):
    """The data of an `ImageData`, whose training and validation samples are cached inputs of the first trained block.

    They are computed when a fit begins, once for every sample and view, and cached on disk. The views of a training
    image are the same for every seed.

    Args:
        data: the images.
        model: merged, and with what is frozen frozen.
        run: the configuration.
        teacher: gives logits, which are cached along with the tokens of training.

    Attributes:
        split_model: takes the batches and gives logits; it shares its parameters with the model.
        stage: the first block that trains, which the batches are the input of.

    Raises:
        MameLabError: something before all blocks trains.
    """

    def __init__(self, data: ImageData, model: nn.Module, run: RunContext, teacher: nn.Module | None = None) -> None:
        super().__init__(data.dataset, data.preprocessing, data.seed)
        self.splits = data.splits
        self.run, self.teacher = run, teacher
        self.split_model = family_of(model).splittable_copy(model)
        depth, device = len(family_of(model).block_names(model)), next(model.parameters()).device
        self.stage = first_trained(self.split_model, depth, self.sample(1, "val")[0].to(device))
        if self.stage < 0:
            raise MameLabError(
                f"finetune.cache=true needs frozen blocks, and finetune={run.finetune.name} trains what comes before "
                f"all blocks: choose finetune=last_layer or head, or set finetune.cache=false"
            )

    def setup(self, stage: str) -> None:
        """Compute what is not cached yet."""
        if stage == "fit":
            splits = {"train": self._training_images(), "val": self.splits.val}
            self.hashes = {split: fingerprint.images(images) for split, images in splits.items()}
            views, tokens = range(self.run.finetune.views), self._tokens()
            teachings = [self._cached(_logits(self.teacher), "train", view) for view in views] if self.teacher else []
            if self.teacher:
                self.teacher.cpu()  # Its work is done.
            self.train = Views([self._cached(tokens, "train", view) for view in views], teachings)
            self.val = Views([self._cached(tokens, "val")] if self.run.trainer.limit_val_batches else [], [])

    def train_dataloader(self) -> DataLoader:
        """A random view of every image; order and batches are those of the images."""
        count = len(self.train.views[0])
        return self._loader_over(self.train, TrainingBatches(count, self.dataset.batch_size, self.seed, self._progress))

    def val_dataloader(self) -> DataLoader:
        return self._loader_over(self.val, EvaluationBatches(len(self.val.views[0]), self.dataset.batch_size))

    def _loader_over(self, views: Views, batches: Sampler) -> DataLoader:
        join_batch = partial(_join, stage=self.stage)
        return LateLoader(views, batch_sampler=batches, collate_fn=join_batch, pin_memory=torch.cuda.is_available())

    def _tokens(self) -> Source:
        weights, mame = fingerprint.weights(self.split_model), asdict(self.run.method)
        return Source(
            "tokens",
            self.split_model,
            lambda inputs: self.split_model.block_input(inputs, self.stage).samples(),
            getattr(torch, self.run.finetune.cache_dtype),
            {"weights": weights, "mame": mame, "stage": self.stage, "dtype": self.run.finetune.cache_dtype},
        )

    def _cached(self, source: Source, split: str, view: int = 0) -> Store:
        assert self.trainer is not None
        images, views = self._training_images() if split == "train" else self.splits.val, self.run.finetune.views
        augmented = split == "train" and self.dataset.augment != "none"
        transform = (self.dataset.training if augmented else self.dataset.evaluation)(self.preprocessing)
        shown = f"view {view + 1} of {views}" if views > 1 else "augmented once for all epochs"
        each = Computation(
            title=f"{source.name} of {split}" + (f", {shown}" if augmented else ""),
            parts=source.parts | self._parts(split, view if augmented else None),
            samples=AugmentedImages(images, transform),
            item=lambda index: (index, seed_of(view, index)),
            compute=source.on(self.trainer),
            dtype=source.dtype,
        )
        return compute_missing(each, self._loader, self.dataset.batch_size, self.trainer)

    def _parts(self, split: str, view: int | None) -> dict[str, Any]:
        """What all that is cached of a split follows from; `view` is the number of its augmentation."""
        assert self.trainer is not None
        run, dataset = self.run, asdict(self.dataset)
        return {
            "split": split,
            "data": self.hashes[split],
            "preprocessing": asdict(self.preprocessing),
            "dataset": {key: value for key, value in dataset.items() if key not in self.dataset.uncached},
            "view": view,
            "augmentation": None if view is None else [dataset["augment"], dataset["min_crop_area"]],
            "model": {key: value for key, value in asdict(run.model).items() if key not in ("weights", "pretrained")},
            "config": _config_of(self.split_model),
            "precision": [
                run.trainer.precision,
                torch.get_float32_matmul_precision(),
                self.trainer.strategy.root_device.type,
            ],
            "code": fingerprint.code(run.method, self.dataset),
        }


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """All of the model acts as in evaluation, also a dropout of the frozen blocks that a pattern lets train."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _config_of(model: nn.Module) -> dict[str, Any] | None:
    """The configuration of a model of transformers, without the place that it is from."""
    config = getattr(model, "config", None)
    return config and {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}


def _logits(teacher: nn.Module) -> Source:
    return Source(
        "logits",
        teacher,
        lambda inputs: (Sample(logits_K[None]) for logits_K in teacher(inputs).float()),
        torch.float32,
        {"weights": fingerprint.weights(teacher)},
    )


def _join(batch: list[tuple[Sample, int, Tensor | None]], stage: int) -> tuple[BlockInput, Tensor]:
    samples, labels, logits_K = zip(*batch, strict=True)
    logits_BK = None if logits_K[0] is None else torch.stack(logits_K)
    return join(stage, list(samples))._replace(logits_BK=logits_BK), torch.tensor(labels)
