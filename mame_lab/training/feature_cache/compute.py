"""Computes the input of a block for every sample, each process a share, and caches it file by file.

A run that is killed leaves whole files, and the next one computes those that are missing. B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mame_lab.data import disk_cache
from mame_lab.data.datamodule import AugmentedImages
from mame_lab.errors import MameLabError
from mame_lab.models.split_forward import Sample
from mame_lab.training.feature_cache import fingerprint
from mame_lab.training.feature_cache.store import FILE_BYTES, FILE_SAMPLES, CachedSample, Store, create, described, find

WAYS_OUT = f"set {disk_cache.FOLDER} to another folder, or finetune.cache=false"
SMALLER = "finetune.cache_dtype=float16 (half as much), finetune.views lower"
NAMED = 5  # parts that changed, at most: with more it is another thing, not a changed one


@dataclass(frozen=True)
class Computation:
    """One pass over a split, whose outcome is cached.

    Args:
        title: what it is called where it is shown.
        parts: all that its outcome follows from, by name (see `fingerprint`).
        samples: (input, label) pairs, by the items that `item` gives.
        item: of a sample, by its index.
        compute: from a batch of inputs to what is cached of each.
        dtype: of the tokens on disk.
    """

    title: str
    parts: dict[str, Any]
    samples: AugmentedImages
    item: Callable[[int], Any]
    compute: Callable[[Tensor], list[Sample]]
    dtype: torch.dtype

    def sample_bytes(self) -> int:
        """What the first sample takes on disk."""
        (sample,) = self.compute(self.samples[self.item(0)][0][None])
        return sum(
            0 if tensor is None else tensor.numel() * itemsize
            for tensor, itemsize in zip(sample, (self.dtype.itemsize, 4, 4), strict=True)
        )


def compute_missing(
    each: Computation, load: Callable[[Dataset, list], DataLoader], batch_size: int, trainer: Trainer
) -> Store:
    """The store of a pass: what is there already, and what is missing computed now.

    Args:
        each: the pass.
        load: makes the loader of a dataset from the list of its batches.
        batch_size: samples in a batch.
        trainer: its processes share the work.

    Raises:
        MameLabError: there is no room, or the processes do not see the same folder.
    """
    opened: Any = _open(each) if trainer.is_global_zero else None
    store, news = trainer.strategy.broadcast(opened)
    missing = store.missing(store.files[trainer.global_rank :: trainer.world_size])
    if missing:
        _compute(each, store, missing, load, batch_size, trainer)
    made = torch.tensor(sum(len(store.indices(file)) for file in missing), device=trainer.strategy.root_device)
    made = int(trainer.strategy.reduce(made, reduce_op="sum"))
    trainer.strategy.barrier()
    if store.absent():
        raise MameLabError(
            f"finetune.cache=true: not all processes write to {store.folder}: set {disk_cache.FOLDER} to a folder that "
            f"all see"
        )
    if trainer.is_global_zero:
        print(_report(each, store, f"{made} made now{news}" if made else "none made anew"))
    return store


def _open(each: Computation) -> tuple[Store, str]:
    """The store of a pass, and where it is new why it is made; with room for what it lacks."""
    parts, caches = fingerprint.plain(each.parts), disk_cache.folder() / "features"
    folder, news = caches / fingerprint.key(parts), ""
    store = find(folder)
    with _writing(folder):
        if store is None:
            news = _news(fingerprint.differences(parts, described(caches)))
            size = each.sample_bytes()
            store = Store(folder, len(each.samples), min(FILE_SAMPLES, max(1, int(FILE_BYTES // size))), size)
            create(store, parts)
        store.check_room()
    return store, news


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        smaller = f", or to need less {SMALLER}" if error.errno == ENOSPC else ""
        reason = error.strerror or error
        raise MameLabError(
            f"finetune.cache=true: {folder} cannot be written ({reason}): {WAYS_OUT}{smaller}"
        ) from error


def _news(changed: list[str]) -> str:
    """Why something is computed that was cached before; nothing where it is all but new."""
    return f" ({' and '.join(changed)} changed)" if 0 < len(changed) <= NAMED else ""


def _report(each: Computation, store: Store, made: str) -> str:
    name = str(each.dtype).removeprefix("torch.")
    lost = "" if each.dtype == torch.float32 else f", {name} off by {store.error():.1e}"
    return f"Cached {each.title}: {len(store)} samples, {made}; {store.bytes() / 1e6:.0f} MB in {store.folder}{lost}"


def _compute(
    each: Computation,
    store: Store,
    missing: list[int],
    load: Callable[[Dataset, list], DataLoader],
    batch_size: int,
    trainer: Trainer,
) -> None:
    indices = [store.indices(file) for file in missing]
    batches = [
        [each.item(index) for index in mine[start : start + batch_size]]
        for mine in indices
        for start in range(0, len(mine), batch_size)
    ]
    columns = TextColumn("{task.description}"), BarColumn(bar_width=16), MofNCompleteColumn(), TimeRemainingColumn()
    waiting, files = [], list(zip(missing, map(len, indices), strict=True))
    with Progress(*columns, disable=trainer.progress_bar_callback is None or not trainer.is_global_zero) as progress:
        task = progress.add_task(each.title, total=sum(map(len, indices)))
        for inputs, labels_B in load(each.samples, batches):
            computed = zip(each.compute(inputs), labels_B.tolist(), strict=True)
            waiting += [CachedSample(sample, label) for sample, label in computed]
            progress.advance(task, len(labels_B))
            if len(waiting) == files[0][1]:
                with _writing(store.folder):
                    store.write(files.pop(0)[0], waiting, each.dtype)
                waiting = []
