"""The training recipe of a task: AdamW, linear warm-up, cosine decay, layer-wise rates, label smoothing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


def lr_factor(step: int, total_steps: int, warmup_steps: int, min_lr_ratio: float) -> float:
    """The share of the peak learning rate that update number `step` (from 0) takes.

    A line up to 1 at `warmup_steps`, then half a cosine down to `min_lr_ratio` at `total_steps`.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_lr_ratio + (1 - min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2


def layers(names: Iterable[str], blocks: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The layer of each parameter: 0 before the first block, i + 1 in block i (from 0), D + 1 after the last of D.

    Args:
        names: of all parameters, in the model's order: what is named before the first block is what runs before it.
        blocks: names of the blocks, in order.
    """
    other = 0
    for name in names:
        inside = [index for index, block in enumerate(blocks) if name.startswith(f"{block}.")]
        other = len(blocks) + 1 if inside else other
        yield name, inside[0] + 1 if inside else other


@dataclass
class AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101), its schedule, and what the loss adds to the recipe.

    Args:
        lr: the peak learning rate.
        weight_decay: of weight matrices only.
        betas: decay of the two moments.
        warmup_epochs: epochs of linear warm-up, a fraction if you like.
        min_lr_ratio: where the cosine ends, as a share of `lr`.
        layer_decay: what the rate is multiplied by with every layer away from the head (as in BEiT, arXiv 2106.08254;
            see `layers`); 1: all have the same.
        label_smoothing: share of the target that is spread over all classes, in training only.

    Raises:
        MameLabError: a value is out of its range.
    """

    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    warmup_epochs: float = 1.0
    min_lr_ratio: float = 0.0
    layer_decay: float = 1.0
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        rules = {
            "lr": (self.lr > 0, "above 0"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "betas": (len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)"),
            "warmup_epochs": (self.warmup_epochs >= 0, "0 or more"),
            "min_lr_ratio": (0 <= self.min_lr_ratio <= 1, "in [0, 1]"),
            "layer_decay": (0 < self.layer_decay <= 1, "above 0 and up to 1"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
        }
        for key, (holds, rule) in rules.items():
            if not holds:
                raise MameLabError(f"optim.{key}={getattr(self, key)}: set it to a value {rule}")

    def build(
        self, model: nn.Module, blocks: Sequence[str], total_steps: float, epochs: int
    ) -> tuple[Optimizer, LRScheduler]:
        """The optimizer of the parameters of `model` that train, and its scheduler, to be stepped after every update.

        Biases, norms and all other parameters of one dimension are not decayed, nor what `model.no_weight_decay()`
        (timm's convention) names. The groups of parameters are ordered by their rates, the highest first.

        Args:
            model: what trains.
            blocks: the names of its blocks, in order.
            total_steps: updates, in `epochs` epochs.

        Raises:
            MameLabError: layers are to have rates of their own, and all that trains is one.
        """
        import torch

        optimizer = torch.optim.AdamW(self._groups(model, blocks), lr=self.lr, betas=(self.betas[0], self.betas[1]))
        factor = partial(
            lr_factor,
            total_steps=int(total_steps),
            warmup_steps=min(int(total_steps), round(self.warmup_epochs * total_steps / epochs)),
            min_lr_ratio=self.min_lr_ratio,
        )
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def _groups(self, model: nn.Module, blocks: Sequence[str]) -> list[dict[str, Any]]:
        """One for each rate, and there one for what is decayed and one for what is not."""
        kept = getattr(model, "no_weight_decay", set)()
        parameters = dict(model.named_parameters())
        groups = defaultdict(list)
        for name, layer in layers(parameters, blocks):
            parameter = parameters[name]
            if parameter.requires_grad:
                rate = self.lr * self.layer_decay ** (len(blocks) + 1 - layer)
                groups[-rate, parameter.ndim <= 1 or name in kept].append(parameter)
        if self.layer_decay < 1 and len({rate for rate, _ in groups}) <= 1:
            raise MameLabError(
                f"optim.layer_decay={self.layer_decay} has no meaning where all that trains is one layer: leave it "
                f"out, or let more train (finetune=last_n, full)"
            )
        return [
            {"params": groups[rate, free], "lr": -rate, "weight_decay": 0.0 if free else self.weight_decay}
            for rate, free in sorted(groups)
        ]
