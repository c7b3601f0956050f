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

from mame_lab.errors import MameLabError
from mame_lab.merging.grid.assignment import Assignment, assign
from mame_lab.merging.grid.windows import targets_of
from mame_lab.merging.method import GridMethod
from mame_lab.merging.schedule import Schedule
from mame_lab.merging.state import full_precision
from mame_lab.models.parts import stands_in
from mame_lab.models.tracing import Unscripted, refuse_fx

# What carries the context to the attentions: an entry of diffusers' own cross_attention_kwargs.
KEY = "merging"
POSITIONAL = 6  # arguments of a U-Net before cross_attention_kwargs


@dataclass(frozen=True)
class UNetMergeContext:
    """How the self-attentions of a U-Net merge. No tuple: hooks of offloading would rebuild it.

    Attributes:
        method: decides which tokens merge.
        schedule: the budget of every resolution.
        grid: rows and columns of the tokens that enter the present transformer.
    """

    method: GridMethod
    schedule: Schedule
    grid: tuple[int, int] = (0, 0)

    def enter(self, unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The U-Net's forward pre-hook: it hands this to the transformers and their attentions."""
        refuse_fx(args[0] if args else kwargs.get("sample"))
        if len(args) > POSITIONAL:
            raise MameLabError("a U-Net that merges takes cross_attention_kwargs by keyword: call it so")
        return args, kwargs | {"cross_attention_kwargs": (kwargs.get("cross_attention_kwargs") or {}) | {KEY: self}}

    def plan(self, level: int, x_BNC: Tensor) -> Assignment | None:
        """The merge step of an attention, None where its resolution does not merge. It has no gradient.

        Args:
            level: the index of its resolution among those of the U-Net.
            x_BNC: the tokens that enter it, row by row.
        """
        tokens = x_BNC.shape[1]
        r = self.schedule.removed(level, tokens, tokens - targets_of(*self.grid))
        if not r:
            return None
        with torch.no_grad(), full_precision(x_BNC):
            return assign(self.method.match(x_BNC, self.grid), tokens, r)


@stands_in
class MergingTransformer2D(Unscripted, Transformer2DModel):
    """diffusers' Transformer2DModel, which tells its attentions the grid."""

    def forward(self, hidden_states: Tensor, *args, cross_attention_kwargs: dict[str, Any], **kwargs):
        grid = tuple(map(int, hidden_states.shape[-2:]))  # torch.jit.trace has tensors for sizes.
        merging = replace(cross_attention_kwargs[KEY], grid=grid)
        return super().forward(
            hidden_states, *args, cross_attention_kwargs=cross_attention_kwargs | {KEY: merging}, **kwargs
        )


@stands_in
class MergingAttention(Unscripted, Attention):
    """diffusers' Attention as self-attention between merging and restoring, by whichever processor it has.

    Attributes:
        level: the index of its resolution among those of the U-Net.
    """

    level: int

    def forward(
        self,
        hidden_states: Tensor,
        *args,
        merging: UNetMergeContext,
        attention_mask: Tensor | None = None,
        **kwargs,
    ):
        plan = merging.plan(self.level, hidden_states)
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


@stands_in
class UnmergedAttention(Unscripted, Attention):
    """diffusers' Attention, which ignores merging."""

    def forward(self, *args, merging: UNetMergeContext, **kwargs):
        return super().forward(*args, **kwargs)
