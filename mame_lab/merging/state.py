"""What one forward pass carries from block to block, as values.

B batch, N tokens, M tokens of all samples, H heads, C channels, D channels of a head.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from mame_lab.errors import MameLabError
from mame_lab.merging.attention import Attention
from mame_lab.merging.method import SequenceMethod
from mame_lab.merging.plan import MergePlan
from mame_lab.merging.tokens import Tokens, precise


class Packing(NamedTuple):
    """Where the tokens of one packed sequence (1, M, C) lie in padded ones (B, N, C).

    Attributes:
        index_M: their places in the B * N tokens.
        lengths: how many each sample has.
        padded: (B, N).
        bias_M: the attention bias of each.
    """

    index_M: Tensor
    lengths: tuple[int, ...]
    padded: tuple[int, int]
    bias_M: Tensor

    def pack(self, x_BNC: Tensor) -> Tensor:
        return x_BNC.flatten(0, 1)[self.index_M][None]

    def unpack(self, x_1MC: Tensor) -> Tensor:
        """Padding becomes 0."""
        batch, tokens = self.padded
        flat = x_1MC.new_zeros(batch * tokens, x_1MC.shape[2]).index_copy(0, self.index_M, x_1MC[0])
        return flat.view(batch, tokens, -1)


class MergeState(NamedTuple):
    """Sizes, attention bias and plans so far, unset before the first merge: nothing differs from the plain model.

    Attributes:
        prefix: tokens at the front that never merge.
        record: keep the plans, which restoring needs; otherwise they are dropped as soon as they are used.
        pack: run samples of different length as one sequence from the step on in which they become so.
        size_BN1: how many original tokens each token is merged from, 0 for padding.
        origin_BN: the place in the full sequence of the token that each one continues.
        valid_BN: False where a token is padding; None: no padding.
        bias_B11N: additive attention mask: the log of the size of the key (proportional attention), -inf for padding.
        packing: the layout of the tokens where they are packed; sizes, origins and bias always lie padded.
        numbers: 0, 1, 2, ... from which every step takes its places.
        plans: the steps so far.
        real: how many tokens of each sample are no padding, where that is known.
    """

    prefix: int
    record: bool = False
    pack: bool = False
    size_BN1: Tensor | None = None
    origin_BN: Tensor | None = None
    valid_BN: Tensor | None = None
    bias_B11N: Tensor | None = None
    packing: Packing | None = None
    numbers: Tensor | None = None
    plans: tuple[MergePlan, ...] = ()
    real: tuple[int, ...] | None = None

    def merge(
        self, method: SequenceMethod, x_BNC: Tensor, input_BNC: Tensor, attention: Attention | None, r: int | None
    ) -> tuple[Tensor, MergeState]:
        """One merge step.

        Args:
            method: decides which tokens merge.
            x_BNC: the tokens between attention and MLP.
            input_BNC: what attention was given.
            attention: what `attention` gave, where it captured what the method needs.
            r: tokens that are removed from every sample; None: the method decides.

        Returns:
            The tokens that remain, and the state after the step.

        Raises:
            MameLabError: torch.jit.trace would keep what follows from the values of one batch.
        """
        if r == 0:
            return x_BNC, self
        tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        if tracing and (r is None or "graph" in method.gives_up):
            raise MameLabError(
                f"torch.jit.trace would keep what mame={method} decides for one batch: set a budget of another method "
                f"than atc, such as mame=ward mame.r=8"
            )
        tokens = self._tokens(method, x_BNC, input_BNC, attention)
        plan, x_BKC, size_BK1, bias_B11K = merge_step(method, tokens, r)
        plans = (*self.plans, plan) if self.record else ()
        if r is None and not plan.layout.source_R.shape[0]:  # No token was like another.
            return x_BNC, self._replace(plans=plans)
        packing = None
        if self.pack and plan.layout.lengths is not None and plan.valid_BK is not None and bias_B11K is not None:
            packing = make_packing(plan.valid_BK, plan.layout.lengths, bias_B11K)
            x_BKC = packing.pack(x_BKC)
        return x_BKC, self._replace(
            size_BN1=size_BK1,
            origin_BN=plan.index_BK if self.origin_BN is None else self.origin_BN.flatten()[plan.layout.place_BK],
            valid_BN=plan.valid_BK,
            bias_B11N=bias_B11K,
            packing=packing,
            numbers=tokens.numbers,
            plans=plans,
            real=plan.layout.lengths,
        )

    @property
    def mask_B11N(self) -> Tensor | None:
        """The mask that a block's attention is given; packed samples are kept apart by `attention`."""
        return self.bias_B11N if self.packing is None else None

    def attention(self, capture: bool, mask_B11N: Tensor | None = None) -> AbstractContextManager[Attention | None]:
        """What a block attends in: it keeps packed samples apart and, if `capture`, sees keys and queries (else None).

        Its attention gets `mask_B11N` there, where the block itself takes no mask.
        """
        if self.packing is not None:
            return Attention(self.packing.bias_M, self.packing.lengths)
        return Attention(mask_B11N=mask_B11N) if capture or mask_B11N is not None else nullcontext()

    def unpack(self, x_BNC: Tensor) -> Tensor:
        """The tokens in the padded layout (B, N, C), whichever they have."""
        return x_BNC if self.packing is None else self.packing.unpack(x_BNC)

    def restore(self, x_BNC: Tensor) -> Tensor:
        """MaRe through all recorded steps, from the padded layout back to the full sequence."""
        with full_precision(x_BNC):
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

    def _tokens(self, method: SequenceMethod, x_BNC: Tensor, input_BNC: Tensor, attention: Attention | None) -> Tokens:
        x_BNC = self.unpack(x_BNC).contiguous()  # Before the first merge they may lie channel by channel.
        size_BN1 = self.size_BN1
        if size_BN1 is None:
            size_BN1 = x_BNC.new_ones(*x_BNC.shape[:2], 1, dtype=precise(x_BNC))
        seen_BNC = self.unpack(input_BNC) if "input" in method.needs else None
        tokens = Tokens(x_BNC, seen_BNC, size_BN1, self.prefix, self.valid_BN, bias_B11N=self.bias_B11N)
        tokens = tokens._replace(numbers=self.numbers, real=self.real)
        tokens = tokens._replace(numbers=tokens.counted())
        if attention is None:
            return tokens
        call, query_BHND = attention.calls[0], None
        if "queries" in method.needs:
            query_BHND = self._unpack_heads(call.query_BHND)
        elif "class_query" in method.needs:
            query_BHND = self._first(call.query_BHND, tokens)
        key_BHND = self._unpack_heads(call.key_BHND) if "keys" in method.needs else None
        return tokens._replace(key_BHND=key_BHND, query_BHND=query_BHND, scale=call.scale)

    def _first(self, query_BHND: Tensor, tokens: Tokens) -> Tensor:
        """That of the first token of each sample: (B, H, 1, D)."""
        if self.packing is None:
            return query_BHND[:, :, :1]
        first_B = torch.searchsorted(self.packing.index_M, tokens.places()[:, 0].contiguous())
        return query_BHND.index_select(2, first_B).permute(2, 1, 0, 3)

    def _unpack_heads(self, key_BHND: Tensor) -> Tensor:
        if self.packing is None:
            return key_BHND
        return self.unpack(key_BHND.transpose(1, 2).flatten(2)).unflatten(2, (key_BHND.shape[1], -1)).transpose(1, 2)


def merge_step(
    method: SequenceMethod, tokens: Tokens, r: int | None
) -> tuple[MergePlan, Tensor, Tensor, Tensor | None]:
    """All that one merge step computes: the plan, the tokens after it, their sizes, and the attention bias."""
    with full_precision(tokens.x_BNC):
        plan = method.plan(tokens, r)
        x_BKC, size_BK1 = plan.merge(tokens.x_BNC, tokens.size_BN1)
        bias_B11K = attention_bias(size_BK1, plan.valid_BK, method.prop_attn)
    return plan, x_BKC, size_BK1, None if bias_B11K is None else bias_B11K.to(x_BKC.dtype)


def make_packing(valid_BN: Tensor, lengths: tuple[int, ...], bias_B11N: Tensor) -> Packing:
    """The layout without padding, of samples of these lengths."""
    index_M = torch.nonzero_static(valid_BN.flatten(), size=sum(lengths))[:, 0]
    return Packing(index_M, lengths, (valid_BN.shape[0], valid_BN.shape[1]), bias_B11N.flatten()[index_M])


def attention_bias(size_BN1: Tensor, valid_BN: Tensor | None, prop_attn: bool) -> Tensor | None:
    """The additive attention mask of shape (B, 1, 1, N), None where there is nothing to add.

    Padding, whose size is 0, gets -inf; where sizes have gradients by a constant, for those of its log would be NaN.
    """
    if prop_attn and (valid_BN is None or not size_BN1.requires_grad):
        return size_BN1.log().mT[:, None]
    if valid_BN is None:
        return None
    valid_BN1 = valid_BN[..., None]
    bias_BN1 = torch.where(valid_BN1, size_BN1, 1).log() if prop_attn else torch.zeros_like(size_BN1)
    return bias_BN1.masked_fill(~valid_BN1, float("-inf")).mT[:, None]


def full_precision(x: Tensor) -> AbstractContextManager:
    """No autocast: weights, sizes and their sums are float32 where half precision would lose mass."""
    device = x.device.type
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else nullcontext()
