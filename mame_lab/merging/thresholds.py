"""Thresholds that learn: merging as it will be deployed, with gradients for the threshold of every block.

What runs is hard adaptive merging, so tokens really leave and training is as fast as the merged model. The threshold of
a block gets its gradients in two ways, and in both the similarities count as constants:

- the cost: the number of tokens that leave counts hard and passes the gradient of `soft_count`;
- the task: a source s that stays has a gate g_s = sigma_s - stop_gradient(sigma_s), which is 0 and has the gradient of
  sigma_s = sigmoid((best_s - tau) / temperature). Were it more than 0, this share of the source would go to its target:
  see `gated`. Sources that leave have none: what it would bring to let them stay is not asked.

B batch, N tokens, K tokens that remain, C channels, D depth, T targets, S sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mame_lab.merging.bipartite import Adaptive
from mame_lab.merging.matching import nearest_weights
from mame_lab.merging.method import Method
from mame_lab.merging.plan import MergePlan, add, norm
from mame_lab.merging.schedule import Schedule
from mame_lab.merging.tokens import Tokens


def soft_count(best_BS: Tensor, tau: Tensor, temperature: Tensor | float) -> Tensor:
    """How many sources of each sample leave, softly: sum_s sigmoid((best_s - tau) / temperature).

    Args:
        best_BS: the similarity of each source with its most similar target; -inf for padding, which counts 0.
        tau: the threshold, a scalar.
        temperature: how far from the threshold a source still counts.
    """
    return ((best_BS - tau) / temperature).sigmoid().sum(1)


class Thresholds(nn.Module):
    """The thresholds of all blocks: tau = 1 - 2 sigmoid(logit), from 1 (off, at -inf) to -1.

    Near 1 the logit is the logarithm of the distance from 1, so that a step of the optimizer is relative to it.

    Args:
        taus: where learning starts; a block whose threshold is 1 does not merge and never will.
        temperature: see `soft_count`.
    """

    temperature: Tensor

    def __init__(self, taus: Sequence[float], temperature: float) -> None:
        super().__init__()
        self.logit_D = nn.Parameter(((1 - torch.tensor(taus, dtype=torch.get_default_dtype())) / 2).logit())
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self) -> Tensor:
        """The thresholds, tau_D."""
        return 1 - 2 * self.logit_D.sigmoid()


@dataclass
class Learning(Method):
    """Adaptive merging by thresholds that are tensors.

    Args:
        base: the method whose thresholds are learned; its own say which blocks merge.
        thresholds: of all blocks; they are shared, not copied.
        block: which block this is the method of (`of_block`).

    Attributes:
        leaving: the tokens that left each sample in the last pass, by block: the hard counts, with the gradient of the
            soft ones.
    """

    base: Any = None
    thresholds: Any = None
    block: int = 0
    leaving: dict[int, Tensor] = field(default_factory=dict)

    adaptive: ClassVar[bool] = True

    @property
    def packed(self) -> bool:
        return self.base.packed

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.base.needs

    def check_sequences(self, model: str, class_token: bool) -> None:
        self.base.check_sequences(model, class_token)

    def schedule_for(self, depth: int) -> Schedule:
        return self.base.schedule_for(depth)

    def of_block(self, block: int, depth: int) -> Learning:
        return replace(self, block=block)

    def learned(self) -> Adaptive:
        """The method with the thresholds as they are now."""
        return replace(self.base, tau=self.thresholds().tolist(), blocks=None)

    def leaving_DB(self) -> Tensor:
        """`leaving` of all blocks, 0 where none merges."""
        none_B = torch.zeros_like(next(iter(self.leaving.values())))
        return torch.stack([self.leaving.get(block, none_B) for block in range(len(self.thresholds.logit_D))])

    def plan(self, tokens: Tokens, leave: int | None) -> MergePlan:
        raise NotImplementedError

    def merge(self, tokens: Tokens, leave: int | None) -> tuple[MergePlan, Tensor, Tensor]:
        tau, temperature = self.thresholds()[self.block], self.thresholds.temperature
        base = copy(self.base)
        base.tau = tau.detach()
        similarity_BTS = base.similarity(tokens)
        best_BS, nearest_BS = similarity_BTS.detach().max(1)
        order_BR, leaves_BR = base.leaving(best_BS, leave)
        targets = base.targets(similarity_BTS, nearest_BS)
        plan = base.merging(tokens, order_BR, leaves_BR, targets)
        x_BKC, size_BK1 = plan.merge(tokens.x_BNC, tokens.size_BN1)

        leaves_BS = torch.zeros_like(best_BS, dtype=torch.bool).scatter(1, order_BR, True)
        if leaves_BR is not None:
            leaves_BS = leaves_BS.scatter(1, order_BR, leaves_BR)
        soft_B = soft_count(best_BS, tau, temperature)
        self.leaving[self.block] = leaves_BS.sum(1) + _gradient_of(soft_B)
        if not tau.requires_grad or not torch.is_grad_enabled():
            return plan, x_BKC, size_BK1
        sigma_BS = ((best_BS - tau) / temperature).sigmoid()
        gate_BS = _gradient_of(sigma_BS).masked_fill(leaves_BS, 0)
        W_BTS = targets.detach() if targets.dim() == 3 else nearest_weights(targets, similarity_BTS)
        return plan, *gated(plan, x_BKC, size_BK1, tokens, W_BTS * (leaves_BS + gate_BS)[:, None])


def gated(plan: MergePlan, x_BKC: Tensor, size_BK1: Tensor, tokens: Tokens, moved_BTS: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens after a merge step and their sizes, to the bit what they are, with the gradients of `moved_BTS`.

    These are the gradients of: size'_t = size_t + sum_s moved_ts size_s, x'_t the mean of its parts by their sizes,
    which gets back as much of its norm as the plan says; and a source keeps the share of its size that does not move.

    Args:
        plan: the step.
        x_BKC, size_BK1: what it made of the tokens.
        tokens: what entered it.
        moved_BTS: the share of each source that goes to each target. Its sum over the targets is 1 for a source that
            leaves, and a gate that is 0 for one that stays.
    """
    target_BTC, source_BSC = (x.to(moved_BTS.dtype) for x in tokens.split(tokens.x_BNC.detach()))
    size_BT1, size_BS1 = tokens.split(tokens.size_BN1.detach())
    gained_BTS = moved_BTS * size_BS1.mT
    total_BT1 = size_BT1 + gained_BTS.sum(2, keepdim=True)
    total_BT1 = torch.where(total_BT1 > 0, total_BT1, 1)
    mean_BTC = (size_BT1 * target_BTC + gained_BTS @ source_BSC) / total_BT1
    if plan.keep_norm:
        norm_BT1 = (size_BT1 * norm(target_BTC) + gained_BTS @ norm(source_BSC)) / total_BT1
        scale_BT1 = torch.where(size_BT1 > 0, norm_BT1 / norm(mean_BTC), 1)
        mean_BTC = mean_BTC * scale_BT1**plan.keep_norm

    last = x_BKC.shape[1] - 1
    row_BT, row_BS = (row_BN1[..., 0].clamp(max=last) for row_BN1 in tokens.split(plan.row_BN[..., None]))
    kept_BS1 = -gained_BTS.sum(1)[..., None]
    x_BKC = add(x_BKC, row_BT, _gradient_of(mean_BTC).to(x_BKC.dtype))
    size_BK1 = add(size_BK1.clone(), row_BT, _gradient_of(total_BT1))
    return x_BKC, add(size_BK1, row_BS, _gradient_of(kept_BS1))


def _gradient_of(x: Tensor) -> Tensor:
    """Zeros with the gradient of x."""
    return x - x.detach()
