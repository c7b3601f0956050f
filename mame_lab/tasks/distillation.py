"""Distillation: what a teacher takes for likely is a target beside the labels (Hinton et al., arXiv 1503.02531).

Shapes: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Distillation:
    """What a teacher adds to the loss.

    Args:
        teacher: gives logits_BK from the inputs of a batch; takes no gradient. Where it is a module, it follows the
            task to its device and precision, but no state dict holds it.
        weight: of the distillation term in the loss, from 0 to 1; cross-entropy has the rest.
        teacher_hash: of its weights. Checkpoints carry it, so that no run goes on with another teacher.
        temperature: what all logits are divided by before they become probabilities.
    """

    teacher: Callable[[Any], Tensor]
    weight: float
    teacher_hash: str
    temperature: float = 1.0

    def kl(self, inputs: Any, logits_BK: Tensor) -> Tensor:
        """KL(teacher || student) in nats at the temperature, the mean over the batch."""
        with torch.no_grad():
            teacher_BK = self.teacher(inputs)
        student_BK, teacher_BK = (F.log_softmax(each / self.temperature, -1) for each in (logits_BK, teacher_BK))
        return F.kl_div(student_BK, teacher_BK, reduction="batchmean", log_target=True)

    def loss(self, cross_entropy: Tensor, kl: Tensor) -> Tensor:
        """Their mean by `weight`. The square of the temperature keeps the size of the gradient through `kl`."""
        return (1 - self.weight) * cross_entropy + self.weight * self.temperature**2 * kl
