"""Merging thresholds that are learned beside the weights, or alone, for a share of the multiply-adds.

B batch, D depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mame_lab.tasks.classification import Classification

# The peak learning rate of the thresholds, which are not decayed. They are learned as logits, so a step of the
# optimizer changes their distance from 1 by about this share of itself. Warm-up and decay are those of the weights.
LR = 0.05
# The loss is that of the task and PENALTY (share / target - 1)^2. The target is one for the mean, so the share is the
# running mean of those of the batches; its gradient is that of the batch at hand.
PENALTY, MOMENTUM = 10.0, 0.9
# How close to the target a common shift of the logits brings the cost, how often it is tried, and what is told.
TOLERANCE, TRIALS, WIDE = 0.005, 12, 0.03


@dataclass
class Budget:
    """What merging may cost.

    Attributes:
        flops: the share of the unmerged model's multiply-adds to meet.
        share: that share for each sample (B,), differentiable, from the tokens that leave in each block (D, B).
        images: training images, without augmentation, in batches as the model takes them.
    """

    flops: float
    share: Callable[[Tensor], Tensor]
    images: Callable[[], list[Tensor]]


class ThresholdClassification(Classification):
    """`Classification` with a model that merges by thresholds, one for each block, which are parameters of this module.

    The cost of a batch is what really ran, with the gradient of a soft count of its tokens. Before each validation, so
    also before each checkpoint that an epoch ends with, all logits are shifted alike until the mean cost of training
    images is the target: what is validated and saved meets it.

    Args:
        settings: of `Classification`.
        learning: the method that the model merges by (`merging.thresholds.Learning`).
        budget: what it may cost.
        asked: the merging that the run was asked for. A checkpoint's configuration carries it under this name; its
            `mame` is the merging with the thresholds as they are.
    """

    share: Tensor

    def __init__(self, *settings: Any, learning: Any, budget: Budget, asked: dict[str, Any]) -> None:
        super().__init__(*settings)
        self.learning = learning
        self.budget = budget
        self.asked = asked
        self.thresholds = learning.thresholds
        self.register_buffer("share", torch.tensor(budget.flops))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = super().training_step(batch)
        share = self._share_B().mean()
        self.share.lerp_(share.detach(), 1 - MOMENTUM)
        excess = (self.share + share - share.detach()) / self.budget.flops - 1
        self.log("train/flops", share, sync_dist=True)
        tau_D = self.thresholds().detach()
        self.log("train/tau", tau_D[tau_D < 1].mean())
        return loss + PENALTY * excess**2

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        super().validation_step(batch)
        self.log("val/flops", self._share_B().mean(), batch_size=len(batch[1]), sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        if not self.trainer.sanity_checking:
            self.meet_budget()

    def meet_budget(self) -> None:
        """Shift all logits alike, so that training images cost what they may."""
        images = self.budget.images()
        logit_D = self.thresholds.logit_D.data
        start_D = logit_D.clone()

        def excess(shift: float) -> float:
            logit_D.copy_(start_D + shift)
            with self.trainer.precision_plugin.forward_context():
                shares = [self._cost(x) for x in images]
            return torch.cat(shares).mean().item() / self.budget.flops - 1

        off, shift = self.trainer.strategy.broadcast(find_zero(excess, TOLERANCE, TRIALS))
        if off > WIDE:
            rank_zero_warn(
                f"mame.flops={self.budget.flops} is met to {off:.0%} only: no shift of the thresholds comes closer"
            )
        logit_D.copy_(start_D + shift)
        self.share.fill_(self.budget.flops)

    def other_parameters(self) -> list[dict[str, Any]]:
        return [{"params": list(self.thresholds.parameters()), "lr": LR, "weight_decay": 0.0}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config | {"mame": asdict(self.learning.learned()), "asked": self.asked}

    def _cost(self, x: Tensor) -> Tensor:
        self.model(self.trainer.precision_plugin.convert_input(x.to(self.device)))
        return self._share_B()

    def _share_B(self) -> Tensor:
        return self.budget.share(self.learning.leaving_DB())


def find_zero(falling: Callable[[float], float], tolerance: float, trials: int) -> tuple[float, float]:
    """How far from 0 a function that falls, be it in steps, comes, and where: to within `tolerance`, or in `trials`.

    Looks at 0 first, then further and further away, and once it knows two places of different sign between them.
    """
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    x, step, closest = 0.0, 0.1, (math.inf, 0.0)
    for trial in range(trials):
        y = falling(x)
        closest = min(closest, (abs(y), x))
        if abs(y) <= tolerance:
            break
        low, high = ((x, y), high) if y > 0 else (low, (x, y))
        if low is None or high is None:
            x, step = x + math.copysign(step, y), 2 * step
        elif trial % 3 == 2:  # Where a line through the two hardly moves.
            x = (low[0] + high[0]) / 2
        else:
            x = low[0] + (high[0] - low[0]) * low[1] / (low[1] - high[1])
    return closest
