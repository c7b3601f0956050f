"""One merge step as explicit tensors: MaMe merges by it, MaRe restores by it.

B batch, N tokens before, K tokens after, R tokens that leave, U tokens that may receive some, C channels; T targets,
S sources. K, R and U count padding.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, one_hot

from mame_lab.merging.tokens import Tokens


class MergePlan(NamedTuple):
    """Which tokens become which. Built by `make_plan`.

    Attributes:
        W_BUR: how a token that leaves is spread over the U tokens that may receive some: a column sums to 1; to 0 where
            the token is dropped, or the column padding.
        row_BU: the places after the step of the tokens that may receive some (any place where the row of W is 0).
        index_BK: the token before the step that each token after it continues (0 for padding).
        source_BR: the tokens that leave (0 for padding).
        place_BN: the row of each token before the step among the tokens after it followed by those that left.
        valid_BK: False where a token after the step is padding; None: no padding.
        prefix: tokens at the front that never merge.
        keep_norm: how much of the norm that a mean loses a merged token gets back: its norm is that of the mean of its
            parts (0), the size-weighted mean of their norms (1), or between (geometrically).
    """

    W_BUR: Tensor
    row_BU: Tensor
    index_BK: Tensor
    source_BR: Tensor
    place_BN: Tensor
    valid_BK: Tensor | None
    prefix: int
    keep_norm: float = 0.0

    @property
    def W_BKR(self) -> Tensor:
        """How the tokens that leave are spread over all tokens after the step."""
        W_BKR = self.W_BUR.new_zeros(*self.index_BK.shape, self.W_BUR.shape[2])
        return W_BKR.scatter_add(1, self.row_BU[..., None].expand_as(self.W_BUR), self.W_BUR)

    def merge(self, x_BNC: Tensor, size_BN1: Tensor) -> tuple[Tensor, Tensor]:
        """Size-weighted merge: s'_k = s_k + W s_r and x'_k = (s_k x_k + W (s_r x_r)) / s'_k.

        A token that receives nothing keeps its value to the bit.

        Args:
            x_BNC: tokens before the step.
            size_BN1: how many original tokens each one stands for, 0 for padding.

        Returns:
            x_BKC (the type of `x_BNC`) and size_BK1 (the type of `size_BN1`), in the order of the original positions.
        """
        x_BKC, x_BRC = take(x_BNC, self.index_BK), take(x_BNC, self.source_BR)
        size_BK1, size_BR1 = take(size_BN1, self.index_BK), take(size_BN1, self.source_BR)
        if self.valid_BK is not None:
            size_BK1 = size_BK1 * self.valid_BK[..., None]
        x_BUC, size_BU1 = take(x_BKC, self.row_BU), take(size_BK1, self.row_BU)
        gained_BUR = self.W_BUR * size_BR1.mT
        gained_BU1 = gained_BUR.sum(2, keepdim=True)
        total_BU1 = size_BU1 + gained_BU1
        share_BUR = gained_BUR / torch.where(total_BU1 > 0, total_BU1, 1)
        kept_BU1 = 1 - share_BUR.sum(2, keepdim=True)
        y_BUC = torch.baddbmm(x_BUC * kept_BU1.to(x_BUC.dtype), share_BUR.to(x_BUC.dtype), x_BRC)
        if self.keep_norm:
            norm_BU1 = kept_BU1 * norm(x_BUC) + share_BUR @ norm(x_BRC)
            scale_BU1 = norm_BU1 / norm(y_BUC)
            y_BUC = y_BUC * torch.where(kept_BU1 < 1, scale_BU1**self.keep_norm, 1).to(y_BUC.dtype)
        return add(x_BKC, self.row_BU, y_BUC - x_BUC), add(size_BK1, self.row_BU, gained_BU1)

    def restore(self, x_BKC: Tensor) -> Tensor:
        """MaRe: tokens return to their positions, a merged one as the weighted mean W^T x' of those that took it.

        Returns:
            x_BNC; a dropped token is 0, the places of padding hold arbitrary finite values.
        """
        x_BRC = self.W_BUR.mT.to(x_BKC.dtype) @ take(x_BKC, self.row_BU)
        return take(torch.cat([x_BKC, x_BRC], 1), self.place_BN)

    def matrix(self) -> Tensor:
        """The whole step as one matrix M_BKN: size' = M size and, unless `keep_norm`, size' x' = M (size x).

        Its transpose restores.
        """
        tokens = self.place_BN.shape[1]
        M_BKN = one_hot(self.index_BK, tokens) + self.W_BKR @ one_hot(self.source_BR, tokens).to(self.W_BUR.dtype)
        return M_BKN if self.valid_BK is None else M_BKN * self.valid_BK[..., None]

    def tokens(self) -> Tensor:
        """Tokens a sample after the step, padding not counted, as an integer tensor of shape (B,)."""
        if self.valid_BK is not None:
            return self.valid_BK.sum(1)
        batch, tokens = self.index_BK.shape
        return torch.full((batch,), tokens, device=self.index_BK.device)


def take(x_BNC: Tensor, index_BK: Tensor) -> Tensor:
    """The tokens x_BKC at the given places. Whole rows by one flat index: many times faster than `gather` on a CPU."""
    return embedding(_flat(index_BK, x_BNC.shape[1]), x_BNC.flatten(0, 1))


def make_plan(
    tokens: Tokens, leaves_BS: Tensor, targets: Tensor | None, leave: int | None, keep_norm: float = 0.0
) -> MergePlan:
    """The plan by which sources (the patch tokens at odd places) go to targets (those at even places).

    Args:
        tokens: what the step merges.
        leaves_BS: True where a source leaves.
        targets: nearest_BS, the target that each source goes to as a whole; or W_BTS, how it is spread over all of
            them, columns that sum to 1. Those of sources that stay do not count. None: tokens that leave are dropped.
        leave: the number of sources that leave in every sample, where it is known: shapes are then static. None: they
            are counted, which costs one synchronisation with the device.
        keep_norm: see `MergePlan`.
    """
    x_BNC, prefix = tokens.x_BNC, tokens.prefix
    leaves_BN = leaves_BS.new_zeros(x_BNC.shape[:2])
    leaves_BN[:, prefix + 1 :: 2] = leaves_BS
    stays_BN = ~leaves_BN if tokens.valid_BN is None else tokens.valid_BN & ~leaves_BN
    kept_B, left_B = stays_BN.sum(1), leaves_BN.sum(1)
    if leave is None:
        fewest, kept, left = torch.stack([kept_B.min(), kept_B.max(), left_B.max()]).tolist()
        padded = fewest < kept
    else:
        kept, left = x_BNC.shape[1] - leave, leave
        padded = tokens.valid_BN is not None

    nowhere = kept + left
    here_N = torch.arange(x_BNC.shape[1], device=x_BNC.device)
    place_BN = torch.where(leaves_BN, kept + leaves_BN.cumsum(1), stays_BN.cumsum(1)) - 1
    place_BN = place_BN.where(leaves_BN | stays_BN, nowhere)
    order_BN = place_BN.new_zeros(x_BNC.shape[0], nowhere + 1).scatter(1, place_BN, here_N.expand_as(place_BN))
    index_BK, source_BR = order_BN[:, :kept], order_BN[:, kept:nowhere]

    real_BR = here_N[:left] < left_B[:, None]
    row_BU, W_BUR = _spread(targets, (source_BR - prefix - 1).clamp(min=0) // 2, real_BR, place_BN[:, prefix::2])
    W_BUR = W_BUR.to(torch.promote_types(x_BNC.dtype, torch.float32))
    valid_BK = here_N[:kept] < kept_B[:, None] if padded else None
    places = place_BN.clamp(max=nowhere - 1)
    return MergePlan(W_BUR, row_BU.clamp(max=kept - 1), index_BK, source_BR, places, valid_BK, prefix, keep_norm)


def _spread(targets: Tensor | None, column_BR: Tensor, real_BR: Tensor, place_BT: Tensor) -> tuple[Tensor, Tensor]:
    """row_BU and W_BUR from the `targets` of `make_plan`; the sources that leave are its columns `column_BR`."""
    if targets is None:
        return column_BR[:, :0], column_BR[:, :0, None].expand(-1, -1, column_BR.shape[1])
    if targets.dim() == 3:
        W_BTR = targets.gather(2, column_BR[:, None].expand(-1, targets.shape[1], -1))
        return place_BT, W_BTR * real_BR[:, None]
    row_BR = place_BT.gather(1, targets.gather(1, column_BR))
    same_BRR = (row_BR[:, :, None] == row_BR[:, None]) & real_BR[:, None]
    taken_BR = same_BRR.tril(-1).any(2)
    return row_BR, same_BRR & ~taken_BR[..., None]


def _flat(index_BK: Tensor, tokens: int) -> Tensor:
    """The places in a batch whose samples, of so many tokens each, lie one after the other."""
    return index_BK + torch.arange(index_BK.shape[0], device=index_BK.device)[:, None] * tokens


def add(x_BKC: Tensor, row_BU: Tensor, y_BUC: Tensor) -> Tensor:
    """Adds y, in place, to the tokens at the given places."""
    x_BKC.flatten(0, 1).index_add_(0, _flat(row_BU, x_BKC.shape[1]).flatten(), y_BUC.flatten(0, 1))
    return x_BKC


def norm(x_BNC: Tensor) -> Tensor:
    """The norm of every token, not quite 0 where it is 0, so that it has a quotient and a gradient."""
    dtype = torch.promote_types(x_BNC.dtype, torch.float32)
    norm_BN1 = torch.linalg.vector_norm(x_BNC, dim=-1, keepdim=True, dtype=dtype)
    return norm_BN1.clamp(min=torch.finfo(dtype).tiny)
