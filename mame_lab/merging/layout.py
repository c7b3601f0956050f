"""Which tokens remain after a merge step, and where.

B batch, N tokens before, K tokens after (padding counted), S sources, R tokens that are removed from all samples,
L = B K, M = B N. Places and rows count on from sample to sample: token n of sample b has the place b N + n, and its
row k after the step is b K + k.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mame_lab.merging.tokens import Tokens

# The lengths to which samples are padded on a GPU are multiples of this.
LENGTH_STEP = 16


class Layout(NamedTuple):
    """Which tokens remain, in their order.

    Attributes:
        place_BK: the place of the token that each one after the step continues; of a removed one where it is padding.
        source_R: the places of the tokens that are removed.
        tokens: N.
        prefix: tokens at the front that never merge.
        valid_BK: False where a token after the step is padding; None: no padding.
        lengths: the tokens of each sample after the step, where they differ.
    """

    place_BK: Tensor
    source_R: Tensor
    tokens: int
    prefix: int
    valid_BK: Tensor | None = None
    lengths: tuple[int, ...] | None = None

    def rows(self) -> Tensor:
        """The row of each of the B * N places after the step, L where there is none: removed, or padding."""
        batch, kept = self.place_BK.shape
        row_L = torch.arange(batch * kept, device=self.place_BK.device)
        row_L = row_L if self.valid_BK is None else row_L.where(self.valid_BK.flatten(), batch * kept)
        row_M = row_L.new_full((batch * self.tokens,), batch * kept)
        return row_M.index_copy_(0, self.place_BK.flatten(), row_L).index_fill_(0, self.source_R, batch * kept)

    def rows_of(self, target_R: Tensor, numbers: Tensor) -> Tensor:
        """The rows of places that remain; `numbers` count from 0 to L at least."""
        place_L = self.place_BK.flatten()
        if self.valid_BK is None and not portable():
            return torch.searchsorted(place_L, target_R)
        # Padding is out of order.
        row_M = place_L.new_empty(self.place_BK.shape[0] * self.tokens).index_copy_(
            0, place_L, numbers[: place_L.shape[0]]
        )
        return row_M.index_select(0, target_R)

    def counts(self) -> Tensor:
        """The tokens of each sample after the step, padding not counted, as an integer tensor (B,)."""
        if self.valid_BK is not None:
            return self.valid_BK.sum(1)
        batch, kept = self.place_BK.shape
        return torch.full((batch,), kept, device=self.place_BK.device)


def layout_without(tokens: Tokens, source_BR: Tensor) -> Layout:
    """The layout after the step in which every sample loses the tokens at R places."""
    batch, n = tokens.x_BNC.shape[:2]
    source_R, kept = source_BR.flatten(), n - source_BR.shape[1]
    numbers = tokens.counted()
    one_based_M = numbers[1 : batch * n + 1].index_fill(0, source_R, 0)
    if portable():
        row_M = (one_based_M > 0).cumsum(0) * (one_based_M > 0)
        place_L = one_based_M.new_zeros(batch * kept + 1).scatter(0, row_M, numbers[: batch * n])[1:]
    else:
        place_L = one_based_M.nonzero_static(size=batch * kept)
    valid_BK = None if tokens.valid_BN is None else tokens.valid_BN.flatten()[place_L.flatten()].view(batch, kept)
    return Layout(place_L.view(batch, kept), source_R, n, tokens.prefix, valid_BK)


def layout_of_some(tokens: Tokens, source_BS: Tensor, removed_BS: Tensor) -> tuple[Layout, Tensor]:
    """The layout after the step in which samples lose some of their sources, and which of the B * S these are."""
    batch, n = tokens.x_BNC.shape[:2]
    stays_M, lost_B = tokens.real().flatten(), removed_BS.sum(1)
    if tokens.valid_BN is None:
        lost, lengths = lost_B.tolist(), [n] * batch
    else:
        lost, lengths = torch.stack([lost_B, tokens.valid_BN.sum(1)]).tolist()
    left = [before - gone for before, gone in zip(lengths, lost, strict=True)]
    chosen_R = removed_BS.flatten().nonzero_static(size=sum(lost))[:, 0]
    source_R, kept = source_BS.flatten().index_select(0, chosen_R), padded_length(max(left, default=n), n, tokens)
    stays_BN = stays_M.index_fill(0, source_R, False).view(batch, n)
    order_BN = stays_BN.sort(dim=1, descending=True, stable=True).indices
    place_BK = order_BN[:, :kept] + tokens.places()[:, :1]
    if min(left, default=n) == kept:
        return Layout(place_BK, source_R, n, tokens.prefix), chosen_R
    valid_BK = tokens.counted()[:kept] < stays_BN.sum(1, keepdim=True)
    return Layout(place_BK, source_R, n, tokens.prefix, valid_BK, tuple(left)), chosen_R


def padded_length(longest: int, before: int, tokens: Tokens) -> int:
    """How many tokens samples are padded to; on a GPU, whose attention plans a kernel for each length, one of few."""
    step = LENGTH_STEP if tokens.x_BNC.is_cuda else 1
    return min(-(-longest // step) * step, before)


def portable() -> bool:
    """Whether what runs is written down for other programs: ONNX has no search, and no counting of what is not 0."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
