"""What a model costs: its time, measured against another model's in turns, its multiply-adds and its memory.

Shapes: B batch, 1 a batch of one; the dimensions that follow are the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor, nn

from mame_lab.data.progress import progress_bar

Arm = TypeVar("Arm")


@dataclass(frozen=True)
class Timing:
    """How fast one model was over the rounds of `time_interleaved`: medians, and the slow tail of the latency."""

    samples_per_s: float
    latency_ms_p50: float
    latency_ms_p95: float
    rounds: int
    batch: int

    @classmethod
    def from_seconds(cls, seconds: list[float], batch: int) -> Timing:
        """From the seconds that each call took on a batch of `batch` samples."""
        p50, p95 = torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.5, 0.95]).double()).tolist()
        return cls(batch / p50, 1e3 * p50, 1e3 * p95, len(seconds), batch)


def time_interleaved(
    arms: Mapping[Arm, Callable[[], object]],
    device: torch.device | str,
    *,
    max_rounds: int = 30,
    min_rounds: int = 3,
    warmup: int = 2,
    seconds: float = 20.0,
) -> dict[Arm, list[float]]:
    """Seconds of each call of each arm; round i of one arm stands beside round i of the others.

    The arms are called in turn, in an order that reverses every round, so that a drift of the machine (heat, clock,
    other load) meets all alike. Measuring ends after `max_rounds`, or after `seconds` of it once `min_rounds` are done.
    Each call is synchronised with the device; the `warmup` calls are not counted. The caller sets no_grad.
    """
    device = torch.device(device)
    order, taken = list(arms), {name: [] for name in arms}
    # Refreshed by hand, between the calls: a refreshing thread would take time from what is measured.
    with progress_bar(auto_refresh=False) as progress:
        task = progress.add_task(f"timing {len(arms)} arms in turns", total=1.0)
        progress.refresh()
        for _ in range(warmup):
            for call in arms.values():
                _seconds_of(call, device)
        for done in range(1, max_rounds + 1):
            for name in order:
                taken[name].append(_seconds_of(arms[name], device))
            order.reverse()
            spent = sum(map(sum, taken.values()))
            progress.update(task, completed=max(done / max_rounds, spent / max(spent, seconds)), refresh=True)
            if done >= min_rounds and spent >= seconds:
                break
    return taken


def _seconds_of(call: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = perf_counter()
    call()
    _synchronize(device)
    return perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def speedup(merged_seconds: list[float], unmerged_seconds: list[float]) -> float:
    """How many times faster merged is: the median over rounds of unmerged over merged seconds, pair by pair."""
    return median(u / m for m, u in zip(merged_seconds, unmerged_seconds, strict=True))


def training_step(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], inputs_B: Tensor, targets_B: Tensor
) -> Callable[[], None]:
    """A call to time: forward, loss, backward and the gradients dropped. No optimizer, so the weights stay."""

    def step() -> None:
        loss(model(inputs_B), targets_B).backward()
        model.zero_grad(set_to_none=True)

    return step


def loader_rate(loader: Iterable[tuple[Tensor, Tensor]], seconds: float) -> float | None:
    """Samples a second that a loader gives by itself, every view of a video counted, pass after pass for so long.

    The first batch of each worker is not timed, for they start with it; they work side by side, so whole rounds of them
    are. None where a loader that is passed over once has no more batches.
    """
    workers = getattr(loader, "num_workers", 0) or 1
    batches = _passes(loader)
    for _ in islice(batches, workers):
        pass
    samples, start = 0, perf_counter()
    for number, (inputs_B, _) in enumerate(batches, 1):
        samples += len(inputs_B)
        if number % workers == 0 and perf_counter() - start >= seconds:
            break
    return samples / (perf_counter() - start) if samples else None


def _passes(loader: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Its batches again and again, until it gives none."""
    empty = False
    while not empty:
        empty = True
        for batch in loader:
            empty = False
            yield batch
