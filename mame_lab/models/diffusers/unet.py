"""A U-Net whose self-attention sees merged tokens (MaMe) and gives back all of them (MaRe) before the residual.

B batch, N tokens of the grid, K tokens that remain, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, SlicedAttnProcessor
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from mame_lab.errors import MameLabError
from mame_lab.merging.assignment import Assignment, assign
from mame_lab.merging.method import Method
from mame_lab.merging.schedule import Schedule
from mame_lab.merging.state import full_precision

# What carries the merging of a pass to its attentions: an entry of diffusers' own cross_attention_kwargs.
KEY = "merging"
POSITIONAL = 6  # arguments of a U-Net before cross_attention_kwargs


@dataclass(frozen=True)
class Pass:
    """What the attentions of one pass through the U-Net share. No tuple: hooks of offloading would rebuild it.

    Attributes:
        method: decides which tokens merge.
        schedule: the budget of every resolution.
        plans: the merge step of each attention, by its place in the U-Net, as far as it is made.
        guided: the second half of the batch merges as the first.
        grid: rows and columns of the tokens that enter the present transformer.
    """

    method: Method
    schedule: Schedule
    plans: dict[int, Assignment]
    guided: bool
    grid: tuple[int, int] = (0, 0)

    def plan(self, attention: MergingAttention, x_BNC: Tensor) -> Assignment | None:
        """The merge step of an attention, None where its resolution does not merge. It has no gradient."""
        sources = len(x_BNC[0]) - unmergeable(self.grid)
        leave = self.schedule.leaving(attention.level, len(x_BNC[0]), sources)
        if not leave:
            return None
        if attention.place not in self.plans:
            first_BNC = x_BNC.chunk(2)[0] if self.guided else x_BNC
            with torch.no_grad(), full_precision(x_BNC):
                plan = assign(self.method.match(first_BNC, self.grid), x_BNC.shape[1], leave)
                self.plans[attention.place] = plan.repeat(2) if self.guided else plan
        return self.plans[attention.place]


class MergingTransformer(Transformer2DModel):
    """diffusers' Transformer2DModel, which tells its attentions the grid."""

    def forward(self, hidden_states: Tensor, *args, cross_attention_kwargs: dict[str, Any], **kwargs):
        merging = replace(cross_attention_kwargs[KEY], grid=tuple(hidden_states.shape[-2:]))
        return super().forward(
            hidden_states, *args, cross_attention_kwargs=cross_attention_kwargs | {KEY: merging}, **kwargs
        )


class MergingAttention(Attention):
    """diffusers' Attention as self-attention between merging and restoring, by whichever processor it has.

    Attributes:
        level: the index of its resolution among those of the U-Net.
        place: its place among the self-attentions of the U-Net.
    """

    level: int
    place: int

    def forward(self, hidden_states: Tensor, *args, merging: Pass, attention_mask: Tensor | None = None, **kwargs):
        plan = merging.plan(self, hidden_states)
        if plan is None:
            return super().forward(hidden_states, *args, attention_mask=attention_mask, **kwargs)
        if attention_mask is not None:
            raise MameLabError("a mask of self-attention has no meaning while tokens merge: call mame_lab.remove first")
        bias_B1K = plan.bias_B1K().to(self._logits_type(hidden_states)) if merging.method.prop_attn else None
        y_BKC = super().forward(plan.merge(hidden_states), *args, attention_mask=bias_B1K, **kwargs)
        return plan.restore(y_BKC)

    def _logits_type(self, x_BNC: Tensor) -> torch.dtype:
        """The type of the logits: processors that do not fuse attention may compute them in float32."""
        upcasts = self.upcast_attention and type(self.processor) in (AttnProcessor, SlicedAttnProcessor)
        return torch.float32 if upcasts else x_BNC.dtype


class CrossAttention(Attention):
    """diffusers' Attention, deaf to merging."""

    def forward(self, *args, merging: Pass, **kwargs):
        return super().forward(*args, **kwargs)


class Denoising:
    """The passes of a U-Net through the steps of denoising: what is kept of merging from one to the next.

    Registered as the U-Net's forward pre-hook, it hands a `Pass` to each of its passes.
    """

    def __init__(self, method: Method, schedule: Schedule) -> None:
        self.method = method
        self.schedule = schedule
        self.plans: dict[int, Assignment] = {}
        self.steps = 0
        self.last: tuple[torch.Size, float] | None = None

    def __call__(self, unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if len(args) > POSITIONAL:
            raise MameLabError("a U-Net that merges takes cross_attention_kwargs by keyword: call it so")
        given = dict(zip(("sample", "timestep"), args, strict=False)) | kwargs
        try:
            self._step(given["sample"], given["timestep"])
            guided = self.method.grid.share_guidance and _halves_are_equal(given["sample"])
            merging = Pass(self.method, self.schedule, self.plans, guided)
        except DataDependentOutputException:  # Costs are counted by shapes alone: every sample and step by itself.
            merging = Pass(self.method, self.schedule, {}, False)
        return args, kwargs | {"cross_attention_kwargs": (kwargs.get("cross_attention_kwargs") or {}) | {KEY: merging}}

    def _step(self, sample: Tensor, timestep: Tensor | float) -> None:
        """Forget the plans where they have been used for long enough, and where other images begin."""
        if self.method.grid.reuse_steps == 1:
            self.plans = {}
            return
        now = sample.shape, float(torch.as_tensor(timestep).max())
        begins = self.last is None or self.last[0] != now[0] or self.last[1] <= now[1]
        self.steps = 0 if begins or self.steps + 1 >= self.method.grid.reuse_steps else self.steps + 1
        self.last = now
        if self.steps == 0:
            self.plans = {}


def _halves_are_equal(sample: Tensor) -> bool:
    """Whether the batch is one of classifier-free guidance: the same latents twice. Costs one synchronisation."""
    return len(sample) % 2 == 0 and torch.equal(*sample.chunk(2))


def unmergeable(grid: tuple[int, int]) -> int:
    """The tokens of a grid that stay at the least: one in each cell of 2 x 2, begun ones counted."""
    return -(-grid[0] // 2) * -(-grid[1] // 2)
