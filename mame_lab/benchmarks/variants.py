"""Ward with one of its choices changed: how they were found, to be run again as arms of the frontier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mame_lab.merging import Method, Ward

if TYPE_CHECKING:
    from torch import Tensor

    from mame_lab.merging.tokens import Tokens


@dataclass
class CosineWard(Ward):
    """Cosine similarity instead of Ward's criterion."""

    def similarity(self, tokens: Tokens) -> Tensor:
        from mame_lab.merging import matching

        return matching.cosine_similarity(tokens.input_BNC, tokens)


@dataclass
class TokenWard(Ward):
    """On the tokens after attention instead of those that attention was given."""

    def similarity(self, tokens: Tokens) -> Tensor:
        from mame_lab.merging import matching

        return matching.ward_similarity(tokens.x_BNC, tokens)


@dataclass
class KeyWard(Ward):
    """On the attention keys, mean over heads."""

    needs: ClassVar[frozenset[str]] = frozenset({"keys"})

    def similarity(self, tokens: Tokens) -> Tensor:
        from mame_lab.merging import matching

        return matching.ward_similarity(tokens.mean_key(), tokens)


@dataclass
class SoftWard(Ward):
    """A source is spread over the targets by a softmax of the similarity instead of going whole to the nearest."""

    temperature: ClassVar[float] = 0.001

    def targets(self, similarity_BTS: Tensor, nearest_BS: Tensor) -> Tensor:
        return (similarity_BTS / self.temperature).softmax(1)


@dataclass
class MeanWard(Ward):
    """A merged token is the mean of its parts, of whatever norm."""

    keep_norm: ClassVar[float] = 0.0


@dataclass
class NormWard(Ward):
    """A merged token gets the mean norm of its parts back in full."""

    keep_norm: ClassVar[float] = 1.0


VARIANTS: dict[str, type[Method]] = {
    "ward_cosine": CosineWard,
    "ward_tokens": TokenWard,
    "ward_keys": KeyWard,
    "ward_soft": SoftWard,
    "ward_mean": MeanWard,
    "ward_norm": NormWard,
}
