"""What one forward pass carries from block to block, as values.

B batch, N tokens, C channels.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from mame_lab.merging.method import Method
from mame_lab.merging.plan import MergePlan


class MergeState(NamedTuple):
    """Sizes, attention bias and plans so far; before the first merge they are unset: nothing differs from plain timm.

    Attributes:
        prefix: tokens at the front that never merge.
        record: keep the plans, which restoring needs; otherwise they are dropped as soon as they are used.
        size_BN1: how many original tokens each token stands for, 0 for padding.
        valid_BN: False where a token is padding; None: no padding.
        bias_B11N: additive attention mask: the log of the size of the key (proportional attention), -inf for padding.
        plans: the steps so far.
    """

    prefix: int
    record: bool = False
    size_BN1: Tensor | None = None
    valid_BN: Tensor | None = None
    bias_B11N: Tensor | None = None
    plans: tuple[MergePlan, ...] = ()

    def merge(self, method: Method, x_BNC: Tensor, leave: int | None) -> tuple[Tensor, "MergeState"]:
        """One merge step: the tokens that remain, and the state after it."""
        if leave == 0:
            return x_BNC, self
        with _full_precision(x_BNC):
            plan = method.plan(x_BNC, self.valid_BN, self.prefix, leave)
            size_BN1 = plan.W_BTS.new_ones(*x_BNC.shape[:2], 1) if self.size_BN1 is None else self.size_BN1
            x_BKC, size_BK1 = plan.merge(x_BNC, size_BN1)
            bias_B11K = attention_bias(size_BK1, plan.valid_BK, method.prop_attn)
        if bias_B11K is not None:
            bias_B11K = bias_B11K.to(x_BKC.dtype)
        plans = (*self.plans, plan) if self.record else ()
        return x_BKC, MergeState(self.prefix, self.record, size_BK1, plan.valid_BK, bias_B11K, plans)

    def restore(self, x_BNC: Tensor) -> Tensor:
        """MaRe through all recorded steps, back to the full sequence."""
        with _full_precision(x_BNC):
            for plan in reversed(self.plans):
                x_BNC = plan.restore(x_BNC)
        return x_BNC

    def mean(self, x_BNC: Tensor, skip: int) -> Tensor:
        """Mean of the tokens after the first `skip`, weighted by their sizes. Returns (B, C)."""
        if self.size_BN1 is None:
            return x_BNC[:, skip:].mean(1)
        size_BN1 = self.size_BN1[:, skip:]
        total_BC = (x_BNC[:, skip:] * size_BN1).sum(1)
        return (total_BC / size_BN1.sum(1)).to(x_BNC.dtype)


def attention_bias(size_BN1: Tensor, valid_BN: Tensor | None, prop_attn: bool) -> Tensor | None:
    """The additive attention mask of shape (B, 1, 1, N), None where there is nothing to add.

    Padding gets a constant: the log of its size 0 would give NaN gradients.
    """
    if valid_BN is None:
        return size_BN1.log().mT[:, None] if prop_attn else None
    valid_BN1 = valid_BN[..., None]
    bias_BN1 = torch.where(valid_BN1, size_BN1, 1).log() if prop_attn else torch.zeros_like(size_BN1)
    return bias_BN1.masked_fill(~valid_BN1, float("-inf")).mT[:, None]


def _full_precision(x: Tensor):
    """No autocast: weights, sizes and their sums are float32 where half precision would lose mass."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
