"""One merge step as explicit tensors: MaMe merges by it, MaRe restores by it.

Of eight tokens, the first a class token, 1 3 5 7 are targets and 2 4 6 sources. Let 2 merge into 3 and 6 into 1. Then
K is 6, `index_BK` is [0 1 3 4 5 7], `row_BN` [0 1 2 2 3 4 1 5], `source_BR` [2 6] and `row_BR` [2 1]. Let instead half
of 2 go to 1 and half to 3, and 6 to 5. Then `index_BK` and `source_BR` are the same, `row_BN` is [0 1 6 2 3 4 6 5],
`place_BN` [0 1 6 2 3 4 7 5], `row_BT` [1 2 4 5], and `W_BTR` has the rows [.5 0], [.5 0], [0 1], [0 0].

B batch, N tokens before, K tokens after, R tokens that are removed, C channels; T targets, S sources. K and R count
padding.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, one_hot, pad

from mame_lab.merging.tokens import Tokens


class HardPlan(NamedTuple):
    """Every removed token merges whole into one token that remains, or is dropped. Built by `make_plan`.

    Attributes:
        row_BN: the row after the step that each token continues as, or is merged into; K where there is none (dropped,
            padding).
        index_BK: the token before the step that each token after it continues (0 for padding).
        source_BR: the tokens that are removed.
        valid_BR: False where `source_BR` is padding; None: no padding.
        valid_BK: False where a token after the step is padding; None: no padding.
        prefix: tokens at the front that never merge.
        row_BR: the rows that the removed tokens are merged into; None: they are dropped.
        complete: whether every token has a row.
        weight_BN1: what a merged token is the mean of its parts by; None: their sizes. Other weights give up that sizes
            times tokens are kept.
        largest_norm: whether a merged token gets the largest norm among its parts, not that of their mean.
    """

    row_BN: Tensor
    index_BK: Tensor
    source_BR: Tensor
    valid_BR: Tensor | None
    valid_BK: Tensor | None
    prefix: int
    row_BR: Tensor | None
    complete: bool
    weight_BN1: Tensor | None = None
    largest_norm: bool = False

    def merge(self, x_BNC: Tensor, size_BN1: Tensor) -> tuple[Tensor, Tensor]:
        """Sizes add up, and x'_k is the mean of its parts: x_k + sum_r share_r (x_r - x_k).

        A token that nothing is merged into keeps its value to the bit.

        Args:
            x_BNC: tokens before the step.
            size_BN1: how many original tokens each one is merged from, 0 for padding.

        Returns:
            x_BKC (the type of `x_BNC`) and size_BK1 (the type of `size_BN1`), in the order of the original positions.
        """
        x_BKC, size_BK1 = take(x_BNC, self.index_BK), _kept_sizes(size_BN1, self.index_BK, self.valid_BK)
        if self.row_BR is None:
            return x_BKC, size_BK1
        row_BR1, gained_BR1 = self.row_BR[..., None], self._of_removed(size_BN1)
        total_BK1 = size_BK1.scatter_add(1, row_BR1, gained_BR1)
        weight_BR1, weight_BK1 = gained_BR1, total_BK1
        if self.weight_BN1 is not None:
            weight_BR1 = self._of_removed(self.weight_BN1)
            weight_BK1 = self.weight_BN1.gather(1, self.index_BK[..., None]).scatter_add(1, row_BR1, weight_BR1)
        share_BR1 = weight_BR1 / weight_BK1.gather(1, row_BR1)

        y_BKC = x_BKC.to(_precise(x_BNC))  # Half precision would lose what a sum of many holds.
        y_MC, row_BR = y_BKC.flatten(0, 1), _flat(self.row_BR, y_BKC.shape[1])
        moved_BRC = share_BR1 * (take(x_BNC, self.source_BR) - embedding(row_BR, y_MC))
        y_MC.index_add_(0, row_BR.flatten(), moved_BRC.flatten(0, 1))
        if self.largest_norm:
            norm_BN1 = _norm(x_BNC, _precise(x_BNC))
            norm_BK1 = norm_BN1.gather(1, self.index_BK[..., None])
            norm_BK1 = norm_BK1.scatter_reduce(1, row_BR1, self._of_removed(norm_BN1), "amax")
            y_BKC = y_BKC * torch.where(total_BK1 > size_BK1, stretch(y_BKC, norm_BK1), 1)
        return y_BKC.to(x_BNC.dtype), total_BK1

    def _of_removed(self, y_BN1: Tensor) -> Tensor:
        """What belongs to the removed tokens: (B, R, 1), 0 for padding."""
        y_BR1 = y_BN1.gather(1, self.source_BR[..., None])
        return y_BR1 if self.valid_BR is None else y_BR1 * self.valid_BR[..., None]

    def restore(self, x_BKC: Tensor) -> Tensor:
        """MaRe: tokens return to their positions, a merged one as the token that it was merged into.

        Returns:
            x_BNC; a dropped token is 0, and so is padding.
        """
        return take(x_BKC if self.complete else pad(x_BKC, (0, 0, 0, 1)), self.row_BN)

    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        """The whole step as one matrix M_BKN: size' = M size and, of means by size, size' x' = M (size x).

        Its transpose restores.
        """
        kept = self.index_BK.shape[1]
        return one_hot(self.row_BN, kept + 1)[..., :kept].mT.to(dtype or torch.get_default_dtype())

    def tokens(self) -> Tensor:
        """Tokens a sample after the step, padding not counted, as an integer tensor of shape (B,)."""
        return _count(self.index_BK, self.valid_BK)


class SoftPlan(NamedTuple):
    """Every removed token is spread over the targets, which all remain. Built by `make_soft_plan`.

    Attributes:
        W_BTR: the share of each removed token that goes to each target: columns sum to 1, to 0 for padding.
        row_BT: the rows of the targets after the step (any for padding).
        row_BN: as in `HardPlan`; K for every removed token.
        place_BN: the row of each token among those after the step followed by the removed ones.
        index_BK, source_BR, valid_BK, prefix: as in `HardPlan`.
    """

    W_BTR: Tensor
    row_BT: Tensor
    row_BN: Tensor
    place_BN: Tensor
    index_BK: Tensor
    source_BR: Tensor
    valid_BK: Tensor | None
    prefix: int

    def merge(self, x_BNC: Tensor, size_BN1: Tensor) -> tuple[Tensor, Tensor]:
        """As `HardPlan.merge`: s'_k = s_k + W s_r and x'_k = (s_k x_k + W (s_r x_r)) / s'_k."""
        x_BKC, x_BRC = take(x_BNC, self.index_BK), take(x_BNC, self.source_BR)
        size_BK1 = _kept_sizes(size_BN1, self.index_BK, self.valid_BK)
        x_BTC, size_BT1 = take(x_BKC, self.row_BT), size_BK1.gather(1, self.row_BT[..., None])
        gained_BTR = self.W_BTR * size_BN1.gather(1, self.source_BR[..., None]).mT
        gained_BT1 = gained_BTR.sum(2, keepdim=True)
        total_BT1 = size_BT1 + gained_BT1
        share_BTR = gained_BTR / torch.where(total_BT1 > 0, total_BT1, 1)
        kept_BT1 = 1 - share_BTR.sum(2, keepdim=True)
        y_BTC = torch.baddbmm(x_BTC * kept_BT1.to(x_BTC.dtype), share_BTR.to(x_BTC.dtype), x_BRC)
        total_BK1 = size_BK1.scatter_add(1, self.row_BT[..., None], gained_BT1)
        return _add(x_BKC, self.row_BT, y_BTC - x_BTC), total_BK1

    def restore(self, x_BKC: Tensor) -> Tensor:
        """MaRe: tokens return to their positions, a merged one as the mean of the targets by its shares, W^T x'.

        Returns:
            x_BNC; the places of padding hold arbitrary finite values.
        """
        x_BRC = self.W_BTR.mT.to(x_BKC.dtype) @ take(x_BKC, self.row_BT)
        return take(torch.cat([x_BKC, x_BRC], 1), self.place_BN)

    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        """As `HardPlan.matrix`."""
        dtype, (batch, kept), tokens = dtype or torch.get_default_dtype(), self.index_BK.shape, self.row_BN.shape[1]
        M_BKN = one_hot(self.row_BN, kept + 1)[..., :kept].mT.to(dtype)
        spread_BTN = self.W_BTR.to(dtype) @ one_hot(self.source_BR, tokens).to(dtype)
        return M_BKN.scatter_add(1, self.row_BT[..., None].expand(batch, -1, tokens), spread_BTN)

    def tokens(self) -> Tensor:
        """As `HardPlan.tokens`."""
        return _count(self.index_BK, self.valid_BK)


MergePlan = HardPlan | SoftPlan


def make_plan(
    tokens: Tokens,
    source_BR: Tensor,
    target_BR: Tensor | None,
    removed_BR: Tensor | None = None,
    weight_BN1: Tensor | None = None,
) -> HardPlan:
    """The plan by which some tokens are merged into others.

    Args:
        tokens: what the step merges.
        source_BR: the places of the tokens to remove, different ones; no prefix tokens, no padding.
        target_BR: the places of the tokens that they are merged into, which remain. None: they are dropped.
        removed_BR: False where a source is not removed after all; those that are come first. They are counted, which
            costs one synchronisation with the device. None: all R are removed from every sample, and shapes are static.
        weight_BN1: see `HardPlan`.
    """
    layout = _lay_out(tokens, source_BR, target_BR, removed_BR)
    row_BR = None
    if target_BR is not None:
        row_BR = layout.row_BN.gather(1, layout.source_BR)
        row_BR = row_BR if layout.valid_BR is None else row_BR * layout.valid_BR
    complete = target_BR is not None and tokens.valid_BN is None
    return HardPlan(*layout, tokens.prefix, row_BR, complete, weight_BN1)


def make_soft_plan(tokens: Tokens, source_BR: Tensor, W_BTR: Tensor, removed_BR: Tensor | None = None) -> SoftPlan:
    """The plan by which some tokens are spread over the targets of `Tokens.split`, none of which is removed.

    Args:
        tokens, source_BR, removed_BR: see `make_plan`.
        W_BTR: the share of each source that goes to each target: columns sum to 1; those of sources that are not
            removed do not count.
    """
    layout = _lay_out(tokens, source_BR, None, removed_BR)
    kept, removed = layout.index_BK.shape[1], layout.source_BR.shape[1]
    W_BTR = W_BTR[..., :removed].to(_precise(tokens.x_BNC))
    here_BR = torch.arange(kept, kept + removed, device=source_BR.device).expand_as(layout.source_BR)
    if layout.valid_BR is not None:
        W_BTR = W_BTR * layout.valid_BR[:, None]
        here_BR = here_BR.where(layout.valid_BR, layout.row_BN.gather(1, layout.source_BR))
    place_BN = layout.row_BN.scatter(1, layout.source_BR, here_BR)
    row_BT = tokens.split(layout.row_BN[..., None])[0][..., 0]
    if tokens.valid_BN is not None:
        place_BN, row_BT = place_BN.clamp(max=kept + removed - 1), row_BT.clamp(max=kept - 1)
    row_BN, index_BK, source_BR, _, valid_BK = layout
    return SoftPlan(W_BTR, row_BT, row_BN, place_BN, index_BK, source_BR, valid_BK, tokens.prefix)


class _Layout(NamedTuple):
    """Where the tokens of a step lie; see `HardPlan`."""

    row_BN: Tensor
    index_BK: Tensor
    source_BR: Tensor
    valid_BR: Tensor | None
    valid_BK: Tensor | None


def _lay_out(tokens: Tokens, source_BR: Tensor, target_BR: Tensor | None, removed_BR: Tensor | None) -> _Layout:
    batch, n, removed = *tokens.x_BNC.shape[:2], source_BR.shape[1]
    here_BN = torch.arange(n, device=source_BR.device).expand(batch, -1)
    into_BR = torch.full_like(source_BR, -1) if target_BR is None else target_BR
    into_BR = into_BR if removed_BR is None else into_BR.where(removed_BR, source_BR)
    into_BN = here_BN.scatter(1, source_BR, into_BR)
    stays_BN = into_BN == here_BN
    stays_BN = stays_BN if tokens.valid_BN is None else stays_BN & tokens.valid_BN
    count_BN = stays_BN.cumsum(1)
    kept_B, kept, padded = count_BN[:, -1], n - removed, tokens.valid_BN is not None
    if removed_BR is not None and batch:
        counts = torch.stack([kept_B.min(), kept_B.max(), removed_BR.sum(1).max()])
        fewest, kept, removed = counts.tolist()
        padded = fewest < kept
        source_BR, removed_BR = source_BR[:, :removed], removed_BR[:, :removed]
    if target_BR is None:
        row_BN = torch.where(stays_BN, count_BN - 1, kept)
    else:
        row_BN = count_BN.gather(1, into_BN) - 1
        row_BN = row_BN if tokens.valid_BN is None else row_BN.where(tokens.valid_BN, kept)
    index_BK = here_BN.new_zeros(batch, kept + 1).scatter(1, count_BN * stays_BN, here_BN)[:, 1:]
    valid_BK = torch.arange(kept, device=kept_B.device) < kept_B[:, None] if padded else None
    return _Layout(row_BN, index_BK, source_BR, removed_BR, valid_BK)


def take(x_BNC: Tensor, index_BK: Tensor) -> Tensor:
    """The tokens x_BKC at the given places. Whole rows by one flat index: many times faster than `gather` on a CPU."""
    return embedding(_flat(index_BK, x_BNC.shape[1]), x_BNC.flatten(0, 1))


def _add(x_BKC: Tensor, row_BU: Tensor, y_BUC: Tensor) -> Tensor:
    """Adds y, in place, to the tokens at the given places."""
    x_BKC.flatten(0, 1).index_add_(0, _flat(row_BU, x_BKC.shape[1]).flatten(), y_BUC.flatten(0, 1))
    return x_BKC


def stretch(x_BNC: Tensor, norm_BN1: Tensor) -> Tensor:
    """What tokens are multiplied with to get the given norms, (B, N, 1).

    Where the parts of a token cancel, its direction is rounding: it is stretched by the root of the precision at most.
    """
    least_BN1 = norm_BN1 * torch.finfo(norm_BN1.dtype).eps ** 0.5
    return norm_BN1 / _norm(x_BNC, norm_BN1.dtype).maximum(least_BN1)


def _norm(x_BNC: Tensor, dtype: torch.dtype) -> Tensor:
    """The norm of every token, not quite 0 where it is 0, so that it has a quotient and a gradient."""
    norm_BN1 = torch.linalg.vector_norm(x_BNC, dim=-1, keepdim=True, dtype=dtype)
    return norm_BN1.clamp(min=torch.finfo(dtype).tiny)


def _flat(index_BK: Tensor, tokens: int) -> Tensor:
    """The places in a batch whose samples, of so many tokens each, lie one after the other."""
    return torch.add(index_BK, torch.arange(index_BK.shape[0], device=index_BK.device)[:, None], alpha=tokens)


def _kept_sizes(size_BN1: Tensor, index_BK: Tensor, valid_BK: Tensor | None) -> Tensor:
    size_BK1 = size_BN1.gather(1, index_BK[..., None])
    return size_BK1 if valid_BK is None else size_BK1 * valid_BK[..., None]


def _count(index_BK: Tensor, valid_BK: Tensor | None) -> Tensor:
    if valid_BK is not None:
        return valid_BK.sum(1)
    batch, tokens = index_BK.shape
    return torch.full((batch,), tokens, device=index_BK.device)


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
