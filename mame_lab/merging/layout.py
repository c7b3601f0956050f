"""Which tokens remain after a merge step, and where.

B batch, N tokens before, K tokens after (padding counted), S sources, R tokens that are removed from all samples,
L = B K, M = B N. Places and rows count on from sample to sample: token n of sample b has the place b N + n, and its
row k after the step is b K + k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mame_lab.merging.tokens import Tokens

# The lengths to which samples are padded on a GPU are multiples of this.
LENGTH_STEP = 16


class Layout(NamedTuple):
    """Which tokens remain, in their order.

    Attributes:
        place_BK: the place of the token that each one after the step continues, in ascending order; where it is
            padding, that of padding before the step or of the last token of its sample.
        source_R: the places of the tokens that are removed.
        tokens: N.
        prefix: tokens at the front that never merge.
        valid_BK: False where a token after the step is padding; None: no padding.
        lengths: the tokens of each sample after the step, where some are padded; of a budget None.
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
        row_M.scatter_reduce_(0, self.place_BK.flatten(), row_L, "amin")  # Padding may share a token's place.
        return row_M.index_fill_(0, self.source_R, batch * kept)

    def rows_of(self, target_R: Tensor, numbers: Tensor) -> Tensor:
        """The rows of places that remain; `numbers` count from 0 to L at least."""
        place_L = self.place_BK.flatten()
        if not portable():
            return torch.searchsorted(place_L, target_R)
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


def choose(removed_BS: Tensor) -> tuple[Tensor, list[int]]:
    """Which of the B * S sources are removed, and how many of each sample. One synchronisation with the device."""
    lost = removed_BS.sum(1).tolist()
    return removed_BS.flatten().nonzero_static(size=sum(lost))[:, 0], lost


def layout_of_some(tokens: Tokens, source_R: Tensor, lost: Sequence[int]) -> Layout:
    """The layout after the step in which each sample loses so many tokens, those at R places of all."""
    batch, n = tokens.x_BNC.shape[:2]
    left = [before - gone for before, gone in zip(tokens.lengths(), lost, strict=True)]
    longest = max(left, default=n)
    kept, nowhere = padded_length(longest, n, tokens), batch * n
    place_BN = tokens.places()
    if tokens.valid_BN is not None:
        place_BN = place_BN.where(tokens.valid_BN, nowhere)
    place_BK = place_BN.flatten().index_fill(0, source_R, nowhere).view(batch, n).sort(1).values[:, :kept]
    if min(left, default=n) == kept:
        return Layout(place_BK.contiguous(), source_R, n, tokens.prefix)
    last_B1 = tokens.places()[:, -1:]
    return Layout(place_BK.minimum(last_B1), source_R, n, tokens.prefix, place_BK < nowhere, tuple(left))


def padded_length(longest: int, before: int, tokens: Tokens) -> int:
    """How many tokens samples are padded to; on a GPU, whose attention plans a kernel for each length, one of few."""
    step = LENGTH_STEP if tokens.x_BNC.is_cuda else 1
    return min(-(-longest // step) * step, before)


def portable() -> bool:
    """Whether what runs is written down for other programs: ONNX has no search, and no counting of what is not 0."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
