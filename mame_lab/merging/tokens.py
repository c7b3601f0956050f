"""What a method may look at when it decides which tokens merge.

B batch, N tokens, C channels, D channels of a head.
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
    """

    x_BNC: Tensor
    input_BNC: Tensor
    size_BN1: Tensor
    prefix: int
    valid_BN: Tensor | None = None
    key_BND: Tensor | None = None

    def split(self, y_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """The targets (B, T, C), patch tokens at even places, and the sources (B, S, C), those at odd places."""
        return y_BNC[:, self.prefix :: 2], y_BNC[:, self.prefix + 1 :: 2]

    def mean(self, y_BN1: Tensor) -> Tensor:
        """Mean over the patch tokens of every sample, padding not counted. Returns (B, 1, 1)."""
        y_BN1 = y_BN1[:, self.prefix :]
        if self.valid_BN is None:
            return y_BN1.mean(1, keepdim=True)
        valid_BN1 = self.valid_BN[:, self.prefix :, None]
        return (y_BN1 * valid_BN1).sum(1, keepdim=True) / valid_BN1.sum(1, keepdim=True)
