"""One merge step as explicit tensors: MaMe merges by it, MaRe restores by it.

B batch, N tokens before, K tokens after (padding included), C channels, T targets, S sources.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class MergePlan(NamedTuple):
    """Which tokens become which. Built by `make_plan`.

    Attributes:
        W_BTS: how a merged source is spread over the targets; a column sums to 1, or to 0 where the source stays.
        merged_BS: True where a source leaves.
        index_BK: the token before the step that each token after it continues (0 for padding).
        place_BN: where each token that stays goes; meaningless for those that leave.
        valid_BK: False where a token after the step is padding; None: no padding.
        prefix: tokens at the front that never merge.
    """

    W_BTS: Tensor
    merged_BS: Tensor
    index_BK: Tensor
    place_BN: Tensor
    valid_BK: Tensor | None
    prefix: int

    def merge(self, x_BNC: Tensor, size_BN1: Tensor) -> tuple[Tensor, Tensor]:
        """Size-weighted merge: s'_t = s_t + W s_s and x'_t = (s_t x_t + W (s_s x_s)) / s'_t.

        Sums run in the type of `W_BTS`; a target that receives nothing keeps its value to the bit.

        Args:
            x_BNC: tokens before the step.
            size_BN1: how many original tokens each one stands for, 0 for padding.

        Returns:
            x_BKC (the type of `x_BNC`) and size_BK1 (the type of `W_BTS`), in the order of the original positions.
        """
        target, source = slice(self.prefix, None, 2), slice(self.prefix + 1, None, 2)
        size_BN1 = size_BN1.to(self.W_BTS.dtype)
        x_BTC, size_BS1 = x_BNC[:, target], size_BN1[:, source]
        gained_BT1 = self.W_BTS @ size_BS1
        gained_BTC = self.W_BTS @ (size_BS1 * x_BNC[:, source]) - gained_BT1 * x_BTC
        total_BT1 = size_BN1[:, target] + gained_BT1
        y_BNC, y_size_BN1 = x_BNC.clone(), size_BN1.clone()
        y_BNC[:, target] = (x_BTC + gained_BTC / torch.where(total_BT1 > 0, total_BT1, 1)).to(x_BNC.dtype)
        y_size_BN1[:, target] = total_BT1
        size_BK1 = _take(y_size_BN1, self.index_BK)
        if self.valid_BK is not None:
            size_BK1 = size_BK1 * self.valid_BK[..., None]
        return _take(y_BNC, self.index_BK), size_BK1

    def restore(self, x_BKC: Tensor) -> Tensor:
        """MaRe: tokens return to their positions, a merged source as the weighted mean W^T x' of its targets.

        Returns:
            x_BNC; the places of padding hold arbitrary finite values.
        """
        target, source = slice(self.prefix, None, 2), slice(self.prefix + 1, None, 2)
        x_BTC = _take(x_BKC, self.place_BN[:, target])
        spread_BSC = (self.W_BTS.mT @ x_BTC.to(self.W_BTS.dtype)).to(x_BKC.dtype)
        x_BNC = _take(x_BKC, self.place_BN)
        x_BNC[:, source] = torch.where(self.merged_BS[..., None], spread_BSC, x_BNC[:, source])
        return x_BNC

    def matrix(self) -> Tensor:
        """The whole step as one matrix M_BKN: size' = M size and size' x' = M (size x); M^T restores."""
        M_BKN = torch.nn.functional.one_hot(self.index_BK, self.place_BN.shape[1]).to(self.W_BTS.dtype)
        M_BKN[:, :, self.prefix + 1 :: 2] += M_BKN[:, :, self.prefix :: 2] @ self.W_BTS
        return M_BKN if self.valid_BK is None else M_BKN * self.valid_BK[..., None]

    def tokens(self) -> Tensor:
        """Tokens a sample after the step, padding not counted, as an integer tensor of shape (B,)."""
        if self.valid_BK is not None:
            return self.valid_BK.sum(1)
        batch, tokens = self.index_BK.shape
        return torch.full((batch,), tokens, device=self.index_BK.device)


def make_plan(W_BTS: Tensor, valid_BN: Tensor | None, prefix: int, leave: int | None) -> MergePlan:
    """The plan that the weights give.

    Args:
        W_BTS: spread of the sources over the targets; a column of zeros is a source that stays.
        valid_BN: False where a token is padding; None: no padding.
        prefix: tokens at the front that never merge.
        leave: the number of non-zero columns of every sample where it is known: shapes are then static. None: it is
            read from the weights, which costs one synchronisation with the device.
    """
    batch, targets, sources = W_BTS.shape
    tokens = prefix + targets + sources
    merged_BS = W_BTS.sum(1) > 0
    stays_BN = merged_BS.new_ones(batch, tokens) if valid_BN is None else valid_BN.clone()
    stays_BN[:, prefix + 1 :: 2] &= ~merged_BS
    place_BN = stays_BN.cumsum(1) - 1
    valid_BK = None
    remaining = tokens if leave is None else tokens - leave
    if leave is None:
        count_B = place_BN[:, -1] + 1
        fewest, remaining = torch.stack(count_B.aminmax()).tolist()
        if fewest < remaining:
            valid_BK = torch.arange(remaining, device=W_BTS.device) < count_B[:, None]
    index_BK = _continued(stays_BN, place_BN, remaining)
    return MergePlan(W_BTS, merged_BS, index_BK, place_BN.clamp(min=0), valid_BK, prefix)


def _continued(stays_BN: Tensor, place_BN: Tensor, remaining: int) -> Tensor:
    """index_BK from the places: tokens that leave write to a column that is cut off."""
    batch, tokens = place_BN.shape
    token_BN = torch.arange(tokens, device=place_BN.device).expand(batch, tokens)
    index_BK = token_BN.new_zeros(batch, remaining + 1)
    return index_BK.scatter(1, torch.where(stays_BN, place_BN, remaining), token_BN)[:, :remaining]


def _take(x_BNC: Tensor, index_BK: Tensor) -> Tensor:
    return x_BNC.gather(1, index_BK[..., None].expand(-1, -1, x_BNC.shape[-1]))
