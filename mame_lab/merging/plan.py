"""One merge step as explicit tensors: MaMe merges by it, MaRe restores by it.

Of eight tokens, the first a class token, 1 3 5 7 are targets and 2 4 6 sources. Let 2 merge into 3 and 6 into 1. Then
K is 6, `place_BK` is [0 1 3 4 5 7], `source_R` [2 6], `target_R` [3 1], `row_R` [2 1] and `row_BN` [0 1 2 2 3 4 1 5].
Let instead half of 2 go to 1 and half to 3, and 6 to 5. Then `W_BTS` has the rows [.5 0 0], [.5 0 0], [0 0 1], [0 0 0].

B batch, N tokens before, K tokens after (padding counted), C channels; T targets, S sources, R tokens that are removed
from all samples, L = B K. Places and rows are those of `layout`, over all samples; indices are those within a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad
from torch.nn.utils.rnn import pad_sequence

from mame_lab.merging.layout import Layout, choose, layout_of_some, layout_without
from mame_lab.merging.tokens import Tokens, precise


class _Plan:
    """What can be read from any plan; for pictures and tests, in which places and rows are those within a sample."""

    layout: Layout

    @property
    def prefix(self) -> int:
        return self.layout.prefix

    @property
    def valid_BK(self) -> Tensor | None:
        return self.layout.valid_BK

    @property
    def index_BK(self) -> Tensor:
        """The token before the step that each token after it continues; any where it is padding."""
        return self.layout.place_BK % self.layout.tokens

    @property
    def source_BR(self) -> Tensor:
        """The tokens that are removed, of all samples as many; the shorter lists are padded with 0."""
        sample_R, index_R = self.layout.source_R // self.layout.tokens, self.layout.source_R % self.layout.tokens
        counts = sample_R.bincount(minlength=self.layout.place_BK.shape[0]).tolist()
        return pad_sequence(list(index_R[sample_R.argsort(stable=True)].split(counts)), batch_first=True)

    @property
    def row_BN(self) -> Tensor:
        """The row after the step that each token continues as, or is merged into as a whole; K where there is none."""
        batch, kept = self.layout.place_BK.shape
        row_BN = self.rows().view(batch, -1)
        return torch.where(row_BN < batch * kept, row_BN % max(kept, 1), kept)

    def rows(self) -> Tensor:
        """The row of each of the B * N places, L where there is none."""
        return self.layout.rows()

    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        """The whole step as one matrix M_BKN: size' = M size and, of means by size, size' x' = M (size x).

        Its transpose restores.
        """
        kept = self.layout.place_BK.shape[1]
        return one_hot(self.row_BN, kept + 1)[..., :kept].mT.to(dtype or torch.get_default_dtype())

    def tokens(self) -> Tensor:
        """Tokens a sample after the step, padding not counted, as an integer tensor of shape (B,)."""
        return self.layout.counts()


class HardPlan(_Plan):
    """Every removed token merges whole into one token that remains, or is dropped. Built by `make_plan`.

    Attributes:
        layout: which tokens remain.
        target_R: the places of the tokens that the removed ones are merged into; None: they are dropped.
        row_R: the rows of these.
        complete: whether every token has a row.
        weight_BN1: what a merged token is the mean of its parts by; None: their sizes. Other weights give up that sizes
            times tokens are kept.
        largest_norm: whether a merged token gets the largest norm among its parts, not that of their mean.
    """

    def __init__(
        self,
        layout: Layout,
        target_R: Tensor | None,
        row_R: Tensor | None,
        complete: bool,
        weight_BN1: Tensor | None = None,
    ) -> None:
        self.layout = layout
        self.target_R = target_R
        self.row_R = row_R
        self.complete = complete
        self.weight_BN1 = weight_BN1
        self.largest_norm = False

    def merge(self, x_BNC: Tensor, size_BN1: Tensor) -> tuple[Tensor, Tensor]:
        """Sizes add up, and x'_k is the mean of its parts: x_k + sum_r share_r (x_r - x_k).

        A token that nothing is merged into keeps its value to the bit.

        Args:
            x_BNC: tokens before the step.
            size_BN1: how many original tokens each one is merged from, 0 for padding.

        Returns:
            x_BKC (the type of `x_BNC`) and size_BK1 (the type of `size_BN1`), in the order of the original positions.
        """
        place_L, removed = self.layout.place_BK.flatten(), self.layout.source_R.shape[0]
        if self.target_R is None or self.row_R is None:
            return self._by_sample(_take(x_BNC, place_L)), self._by_sample(self._sizes(_take(size_BN1, place_L)))
        # One gather for all: what remains, what is removed, and what that is merged into.
        index = torch.cat([place_L, self.layout.source_R, self.target_R])
        kept, paired = place_L.shape[0], place_L.shape[0] + removed
        x_MC, size_M1 = _take(x_BNC, index), _take(size_BN1, index[:paired])
        size_L1 = self._sizes(size_M1[:kept])
        total_L1 = size_L1.index_add(0, self.row_R, size_M1[kept:])
        weight_M1, whole_L1 = size_M1, total_L1
        if self.weight_BN1 is not None:
            weight_M1 = _take(self.weight_BN1, index[:paired])
            whole_L1 = weight_M1[:kept].index_add(0, self.row_R, weight_M1[kept:])
        share_R1 = weight_M1[kept:] / whole_L1.index_select(0, self.row_R)
        moved_RC = (x_MC[kept:paired].to(share_R1.dtype) - x_MC[paired:]) * share_R1
        y_LC = _add(x_MC, self.row_R, moved_RC, x_MC[paired:])[:kept]
        if self.largest_norm:
            y_LC = self._stretched(y_LC, x_BNC, total_L1 > size_L1)
        return self._by_sample(y_LC), self._by_sample(total_L1)

    def _stretched(self, y_LC: Tensor, x_BNC: Tensor, merged_L1: Tensor) -> Tensor:
        assert self.row_R is not None
        norm_BN1 = _norm(x_BNC, precise(x_BNC))
        norm_L1, norm_R1 = _take(norm_BN1, self.layout.place_BK.flatten()), _take(norm_BN1, self.layout.source_R)
        norm_L1 = norm_L1.scatter_reduce(0, self.row_R[:, None], norm_R1, "amax")
        return (y_LC * torch.where(merged_L1, stretch(y_LC.to(norm_L1.dtype), norm_L1), 1)).to(x_BNC.dtype)

    def _sizes(self, size_L1: Tensor) -> Tensor:
        return size_L1 if self.valid_BK is None else size_L1 * self.valid_BK.view(-1, 1)

    def _by_sample(self, y_LC: Tensor) -> Tensor:
        return y_LC.view(*self.layout.place_BK.shape, y_LC.shape[1])

    def rows(self) -> Tensor:
        row_M = self.layout.rows()
        return row_M if self.row_R is None else row_M.index_copy_(0, self.layout.source_R, self.row_R)

    def restore(self, x_BKC: Tensor) -> Tensor:
        """MaRe: tokens return to their positions, a merged one as the token that it was merged into.

        Returns:
            x_BNC; a dropped token is 0, and so is padding.
        """
        x_LC = x_BKC.flatten(0, 1)
        x_LC = x_LC if self.complete else pad(x_LC, (0, 0, 0, 1))
        return x_LC.index_select(0, self.rows()).view(x_BKC.shape[0], self.layout.tokens, x_BKC.shape[2])


class SoftPlan(_Plan):
    """Every removed token is spread over the targets of `Tokens.split`, which all remain. Built by `make_soft_plan`.

    Attributes:
        layout: which tokens remain.
        W_BTS: the share of each source that goes to each target: columns sum to 1, to 0 for those that remain.
    """

    def __init__(self, layout: Layout, W_BTS: Tensor) -> None:
        self.layout = layout
        self.W_BTS = W_BTS

    def merge(self, x_BNC: Tensor, size_BN1: Tensor) -> tuple[Tensor, Tensor]:
        """As `HardPlan.merge`: s'_t = s_t + W s_s and x'_t = (s_t x_t + W (s_s x_s)) / s'_t."""
        (x_BTC, x_BSC), (size_BT1, size_BS1) = self._split(x_BNC), self._split(size_BN1)
        gained_BTS = self.W_BTS * size_BS1.mT
        total_BT1 = size_BT1 + gained_BTS.sum(2, keepdim=True)
        total_BT1 = total_BT1.clamp(min=torch.finfo(total_BT1.dtype).tiny)  # That of padding is 0.
        share_BTS, kept_BT1 = (gained_BTS / total_BT1).to(x_BNC.dtype), (size_BT1 / total_BT1).to(x_BNC.dtype)
        y_BTC = torch.baddbmm(x_BTC * kept_BT1, share_BTS, x_BSC)
        place_L, shape = self.layout.place_BK.flatten(), self.layout.place_BK.shape
        y_LC = _take(self._with_targets(x_BNC, y_BTC), place_L)
        total_L1 = _take(self._with_targets(size_BN1, total_BT1), place_L)
        if self.valid_BK is not None:
            total_L1 = total_L1 * self.valid_BK.view(-1, 1)
        return y_LC.view(*shape, y_LC.shape[1]), total_L1.view(*shape, 1)

    def restore(self, x_BKC: Tensor) -> Tensor:
        """MaRe: tokens return to their positions, a merged one as the mean of the targets by its shares, W^T x'.

        Returns:
            x_BNC; padding is 0.
        """
        x_LC = pad(x_BKC.flatten(0, 1), (0, 0, 0, 1))
        x_BNC = x_LC.index_select(0, self.rows()).view(x_BKC.shape[0], self.layout.tokens, x_BKC.shape[2])
        spread_BSC = self.W_BTS.mT.to(x_BNC.dtype) @ self._split(x_BNC)[0]
        start = self.prefix + 1
        return x_BNC.slice_scatter(self._split(x_BNC)[1] + spread_BSC, 1, start, step=2)

    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        M_BKN = super().matrix(dtype)
        target_BKT, source_BKS = self._split(M_BKN.mT)
        source_BSK = source_BKS + self.W_BTS.mT.to(M_BKN.dtype) @ target_BKT
        return M_BKN.mT.slice_scatter(source_BSK, 1, self.prefix + 1, step=2).mT

    def _split(self, y_BNC: Tensor) -> tuple[Tensor, Tensor]:
        return y_BNC[:, self.prefix :: 2], y_BNC[:, self.prefix + 1 :: 2]

    def _with_targets(self, y_BNC: Tensor, target_BTC: Tensor) -> Tensor:
        return y_BNC.slice_scatter(target_BTC.to(y_BNC.dtype), 1, self.prefix, step=2)


MergePlan = HardPlan | SoftPlan


def make_plan(
    tokens: Tokens, source_BR: Tensor, target_BR: Tensor | None, weight_BN1: Tensor | None = None
) -> HardPlan:
    """The plan by which of every sample R tokens are merged into others.

    Args:
        tokens: what the step merges.
        source_BR: the tokens to remove, by their index in the sample, different ones; no prefix tokens, no padding.
        target_BR: the tokens that they are merged into, which remain. None: they are dropped.
        weight_BN1: see `HardPlan`.
    """
    first_B1 = tokens.places()[:, :1]
    target_BR = None if target_BR is None else target_BR + first_B1
    return plan_of_places(tokens, source_BR + first_B1, target_BR, weight_BN1)


def plan_of_places(
    tokens: Tokens, source_BR: Tensor, target_BR: Tensor | None, weight_BN1: Tensor | None = None
) -> HardPlan:
    """`make_plan` for places among the tokens of all samples, as `Tokens.places` gives them."""
    layout = layout_without(tokens, source_BR)
    if target_BR is None:
        return HardPlan(layout, None, None, complete=False)
    target_R, complete = target_BR.flatten(), tokens.valid_BN is None
    return HardPlan(layout, target_R, layout.rows_of(target_R, tokens.counted()), complete, weight_BN1)


def plan_of_some(tokens: Tokens, source_BS: Tensor, target_BS: Tensor, removed_BS: Tensor) -> HardPlan:
    """`plan_of_places` where `removed_BS` says which of the sources are removed. One synchronisation with the device.

    Padding is not removed.
    """
    chosen_R, lost = choose(removed_BS)
    source_R, target_R = torch.stack((source_BS, target_BS)).flatten(1).index_select(1, chosen_R)
    layout = layout_of_some(tokens, source_R, lost)
    return HardPlan(layout, target_R, layout.rows_of(target_R, tokens.counted()), tokens.valid_BN is None)


def make_soft_plan(tokens: Tokens, layout: Layout, W_BTS: Tensor, removed_BS: Tensor) -> SoftPlan:
    """The plan by which some tokens are spread over the targets of `Tokens.split`, none of which is removed.

    Args:
        tokens: what the step merges.
        layout: without the sources that are removed.
        W_BTS: the share of each source that goes to each target: columns sum to 1, those of sources that are not
            removed may be any finite numbers.
        removed_BS: which of the sources are removed.
    """
    return SoftPlan(layout, W_BTS.to(precise(tokens.x_BNC)) * removed_BS[:, None])


def take(x_BNC: Tensor, index_BK: Tensor) -> Tensor:
    """The tokens x_BKC at the given indices. Whole rows by one flat index: many times faster than `gather` on a CPU."""
    first_B1 = torch.arange(0, x_BNC.shape[0] * x_BNC.shape[1], x_BNC.shape[1], device=x_BNC.device)[:, None]
    return _take(x_BNC, (index_BK + first_B1).flatten()).view(*index_BK.shape, x_BNC.shape[2])


def _take(x_BNC: Tensor, place_M: Tensor) -> Tensor:
    return x_BNC.flatten(0, 1).index_select(0, place_M)


def _add(x_MC: Tensor, row_R: Tensor, moved_RC: Tensor, target_RC: Tensor) -> Tensor:
    """Adds, in place, what moved to the rows, which hold `target_RC`.

    In half precision what meets in one row is first summed in float32, at the place of one of its parts, and the sum
    written once; what the other parts would write goes to the last R rows, which nothing reads any more.
    """
    if moved_RC.dtype == x_MC.dtype:
        return x_MC.index_add_(0, row_R, moved_RC)
    here_R = torch.arange(row_R.shape[0], device=row_R.device)
    first_R = row_R.new_empty(x_MC.shape[0]).index_copy_(0, row_R, here_R).index_select(0, row_R)
    sum_RC = torch.zeros_like(moved_RC).index_add_(0, first_R, moved_RC).index_select(0, first_R)
    slot_R = torch.where(first_R == here_R, row_R, here_R + (x_MC.shape[0] - row_R.shape[0]))
    return x_MC.index_copy_(0, slot_R, (target_RC + sum_RC).to(x_MC.dtype))


def stretch(x_BNC: Tensor, norm_BN1: Tensor) -> Tensor:
    """What tokens are multiplied with to get the given norms, (..., 1).

    Where the parts of a token cancel, its direction is rounding: it is stretched by the root of the precision at most.
    """
    least_BN1 = norm_BN1 * torch.finfo(norm_BN1.dtype).eps ** 0.5
    return norm_BN1 / _norm(x_BNC, norm_BN1.dtype).maximum(least_BN1)


def _norm(x_BNC: Tensor, dtype: torch.dtype) -> Tensor:
    """The norm of every token, not quite 0 where it is 0, so that it has a quotient and a gradient."""
    norm_BN1 = torch.linalg.vector_norm(x_BNC, dim=-1, keepdim=True, dtype=dtype)
    return norm_BN1.clamp(min=torch.finfo(dtype).tiny)
