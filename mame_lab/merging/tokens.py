"""What a method may look at when it decides which tokens merge.

B batch, N tokens, P patch tokens, C channels, H heads, D channels of a head, T targets, S sources.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """The tokens that enter a merge step.

    Attributes:
        x_BNC: the tokens between attention and MLP, the prefix tokens first: what is merged.
        input_BNC: what attention was given, the tokens before it, normalised; None unless the method `needs` it.
        size_BN1: how many original tokens each one is merged from, 0 for padding.
        prefix: tokens at the front that never merge (class, register).
        valid_BN: False where a token is padding; None: no padding.
        key_BHND, query_BHND: what attention compared, after rotation where there is one; None unless the method `needs`
            them. Of the queries there may be that of the first token alone.
        scale: what it multiplied their products with.
        bias_B11N: what it added to its logits (proportional attention, padding); None: nothing.
        partition: the places (T,) of the targets and (S,) of the sources; None: patch tokens at even and at odd places.
        windows: how many successive samples are windows of one grid.
        numbers: 0, 1, 2, ... up to B N at least; None: made when needed.
        real: how many tokens of each sample are no padding; None: counted when needed.
    """

    x_BNC: Tensor
    input_BNC: Tensor | None
    size_BN1: Tensor
    prefix: int
    valid_BN: Tensor | None = None
    key_BHND: Tensor | None = None
    query_BHND: Tensor | None = None
    scale: float = 1.0
    bias_B11N: Tensor | None = None
    partition: tuple[Tensor, Tensor] | None = None
    windows: int = 1
    numbers: Tensor | None = None
    real: tuple[int, ...] | None = None

    def split(self, y_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """The targets (B, T, ...) and the sources (B, S, ...) of something of all tokens (B, N, ...)."""
        return self.halves(y_BNC[:, self.prefix :])

    def halves(self, y_BPC: Tensor) -> tuple[Tensor, Tensor]:
        """The targets (B, T, ...) and the sources (B, S, ...) of something of the patch tokens (B, P, ...)."""
        if self.partition is not None:
            return y_BPC[:, self.partition[0]], y_BPC[:, self.partition[1]]
        return y_BPC[:, ::2], y_BPC[:, 1::2]

    def places(self) -> Tensor:
        """The place of each token among those of all samples: (B, N)."""
        batch, tokens = self.x_BNC.shape[:2]
        return self.counted()[: batch * tokens].view(batch, tokens)

    def counted(self) -> Tensor:
        """0, 1, 2, ... up to B N at least."""
        if self.numbers is not None:
            return self.numbers
        return torch.arange(self.x_BNC.shape[0] * self.x_BNC.shape[1] + 1, device=self.x_BNC.device)

    def lengths(self) -> Sequence[int]:
        """How many tokens of each sample are no padding."""
        if self.valid_BN is None:
            return [self.x_BNC.shape[1]] * self.x_BNC.shape[0]
        return self.valid_BN.sum(1).tolist() if self.real is None else self.real

    def mean(self, y_BNC: Tensor) -> Tensor:
        """Mean over the patch tokens of every sample, or of the grid that it is a window of; padding does not count.

        Returns (B, 1, C).
        """
        y_BNC = self._of_grid(y_BNC[:, self.prefix :])
        if self.valid_BN is None:
            mean_B1C = y_BNC.mean(1, keepdim=True)
        else:
            valid_BN1 = self._of_grid(self.valid_BN[:, self.prefix :, None])
            mean_B1C = (y_BNC * valid_BN1).sum(1, keepdim=True) / valid_BN1.sum(1, keepdim=True)
        return mean_B1C if self.windows == 1 else mean_B1C.repeat_interleave(self.windows, 0)

    def _of_grid(self, y_BNC: Tensor) -> Tensor:
        """The windows of a grid as one sample."""
        return y_BNC if self.windows == 1 else y_BNC.unflatten(0, (-1, self.windows)).flatten(1, 2)

    def keys(self) -> Tensor:
        """The attention keys of all heads: (B, N, H * D)."""
        assert self.key_BHND is not None  # For methods whose `needs` has "keys".
        return self.key_BHND.transpose(1, 2).flatten(2)

    def mean_key(self) -> Tensor:
        """The attention keys, mean over heads: key_BND."""
        assert self.key_BHND is not None
        return self.key_BHND.mean(1, dtype=precise(self.key_BHND))

    def class_attention(self) -> Tensor:
        """How much the class token (the first one) attends to each token, mean over heads: (B, N), 0 for padding.

        In float32 at least; the rows sum to 1. For methods whose `needs` has "keys" and "class_query".
        """
        return self._attention(1).mean((1, 2))

    def class_repulsion(self) -> Tensor:
        """How little the class token (the first one) attends to each patch token: (B, P, 1), 0 for padding.

        In proportion to exp of minus half its logits, mean over heads; of mean 1 / P. In float32 at least. For methods
        whose `needs` has "keys" and "class_query".
        """
        assert self.query_BHND is not None
        query_B1C, key_BPC = self.query_BHND[:, :, 0].flatten(1)[:, None], self.keys()[:, self.prefix :]
        logit_B1P = _product(query_B1C, key_BPC.mT, -0.5 * self.scale / self.query_BHND.shape[1])
        if self.valid_BN is None:
            return logit_B1P.softmax(2).mT
        valid_BP = self.valid_BN[:, self.prefix :]
        share_BP = logit_B1P[:, 0].masked_fill(~valid_BP, float("-inf")).softmax(1)
        return (share_BP * valid_BP.to(share_BP.dtype).mean(1, keepdim=True))[..., None]

    def attention_received(self) -> Tensor:
        """How much all tokens attend to each token, mean over them and heads: (B, N), 0 for padding.

        As `class_attention`, for methods whose `needs` has "queries" too.
        """
        attention_BHNN = self._attention(self.x_BNC.shape[1])
        if self.valid_BN is None:
            return attention_BHNN.mean((1, 2))
        valid_BNN = self.valid_BN[..., None] / self.valid_BN.sum(1)[:, None, None]
        return (attention_BHNN.mean(1) * valid_BNN).sum(1)

    def _attention(self, queries: int) -> Tensor:
        """How the first so many tokens attend to all: (B, H, queries, N)."""
        assert self.key_BHND is not None
        assert self.query_BHND is not None
        dtype = precise(self.key_BHND)
        query_BHND = self.query_BHND[:, :, :queries].to(dtype) * self.scale
        logits_BHNN = query_BHND @ self.key_BHND.to(dtype).mT
        return (logits_BHNN if self.bias_B11N is None else logits_BHNN + self.bias_B11N).softmax(-1)


def _product(x_BNC: Tensor, y_BCM: Tensor, scale: float) -> Tensor:
    """The matrix product times a number, in float32 at least; a GPU multiplies half precision as it is."""
    dtype = precise(x_BNC)
    if x_BNC.is_cuda and x_BNC.dtype != dtype:
        return torch.bmm(x_BNC, y_BCM, out_dtype=dtype).mul_(scale)
    x_BNC, y_BCM = x_BNC.to(dtype), y_BCM.to(dtype)
    return torch.baddbmm(x_BNC[:1, :1, :1], x_BNC, y_BCM, beta=0, alpha=scale)


def precise(x: Tensor) -> torch.dtype:
    """The type of a tensor, float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)
