"""What a method may look at when it decides which tokens merge.

B batch, N tokens, C channels, D channels of a head, T targets, S sources.
"""

from typing import NamedTuple

from torch import Tensor


class Tokens(NamedTuple):
    """The tokens that enter a merge step.

    Attributes:
        x_BNC: the tokens between attention and MLP, the prefix tokens first: what is merged.
        input_BNC: what attention was given: the tokens before it, normalised.
        size_BN1: how many original tokens each one stands for, 0 for padding.
        prefix: tokens at the front that never merge (class, register).
        valid_BN: False where a token is padding; None: no padding.
        key_BND: the attention keys, mean over heads; None unless the method says `needs_keys`.
        partition: the places (T,) of the targets and (S,) of the sources; None: patch tokens at even and at odd places.
        windows: how many successive samples are windows of one grid.
    """

    x_BNC: Tensor
    input_BNC: Tensor
    size_BN1: Tensor
    prefix: int
    valid_BN: Tensor | None = None
    key_BND: Tensor | None = None
    partition: tuple[Tensor, Tensor] | None = None
    windows: int = 1

    def split(self, y_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """The targets (B, T, C) and the sources (B, S, C)."""
        if self.partition is not None:
            return y_BNC[:, self.partition[0]], y_BNC[:, self.partition[1]]
        return y_BNC[:, self.prefix :: 2], y_BNC[:, self.prefix + 1 :: 2]

    def mean(self, y_BN1: Tensor) -> Tensor:
        """Mean over the patch tokens of every sample, or of the grid that it is a window of; padding does not count.

        Returns (B, 1, 1).
        """
        y_BN1 = y_BN1[:, self.prefix :]
        if self.windows > 1:
            mean_G11 = y_BN1.unflatten(0, (-1, self.windows)).mean((1, 2))[..., None]
            return mean_G11.repeat_interleave(self.windows, 0)
        if self.valid_BN is None:
            return y_BN1.mean(1, keepdim=True)
        valid_BN1 = self.valid_BN[:, self.prefix :, None]
        return (y_BN1 * valid_BN1).sum(1, keepdim=True) / valid_BN1.sum(1, keepdim=True)
