"""Which images make up the batches of each process, as a function of seed and epoch alone.

So a run can go on after any batch, on as many processes, as if it had never stopped. W processes, G images in a batch
of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import distributed
from torch.utils.data import Sampler

from mame_lab.errors import MameLabError

Progress = Callable[[], tuple[int, int]]


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """A new shuffle every epoch; batch k of all processes together holds images k G to (k + 1) G of it.

    An item is an image's index with the seed of its augmentation. The last batch is short only if there are fewer than
    two full ones, else what is left over is dropped.

    Args:
        count: images.
        batch_size: images in a batch of one process.
        seed: of the run.
        progress: the epoch that an iteration is for, and how many of its batches are done already.

    Raises:
        MameLabError: there are fewer images than processes.
    """

    def __init__(self, count: int, batch_size: int, seed: int, progress: Progress) -> None:
        self.count, self.batch_size, self.seed, self.progress = count, batch_size, seed, progress

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.batch_size * _processes()[1])
        return whole if whole > 1 else whole + bool(rest)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, processes = _processes()
        if self.count < processes:
            raise MameLabError(f"dataset: {self.count} training images are too few for {processes} processes")
        epoch, done = self.progress()
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        order = torch.randperm(self.count, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.count,), generator=generator).tolist()
        together = self.batch_size * processes
        for start in range(done % len(self) * together, len(self) * together, together):
            batch = order[start : start + together]
            batch = batch[: len(batch) - len(batch) % processes]
            yield [(index, seeds[index]) for index in batch[rank::processes]]


class EvaluationBatches(Sampler[list[int]]):
    """Every image once, in order, whatever the number of processes; each process gets as many batches.

    Args:
        count: images.
        batch_size: images in a batch of one process, at most.

    Raises:
        MameLabError: a process would be left with an empty batch.
    """

    def __init__(self, count: int, batch_size: int) -> None:
        self.count, self.batch_size = count, batch_size

    def __len__(self) -> int:
        share = -(-self.count // _processes()[1])
        return -(-share // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rank, processes = _processes()
        mine = range(rank, self.count, processes)
        if processes == 1:
            yield from (list(mine[start : start + self.batch_size]) for start in range(0, self.count, self.batch_size))
            return
        if self.count // processes < len(self):
            raise MameLabError(
                f"dataset.batch_size={self.batch_size}: {self.count} images do not make {len(self)} batches on each of "
                f"{processes} processes: take larger batches or fewer processes"
            )
        yield from (batch.tolist() for batch in np.array_split(mine, len(self)))


def seed_of(*numbers: int) -> int:
    """A seed that differs, for all that is known, for every sequence of numbers; zeros at its end do not count."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _processes() -> tuple[int, int]:
    """The rank of this process, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
