"""Methods with one of their choices changed, as arms of the frontier.

Of `ward`, for it was found by them; of published methods, the blocks in which they merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mame_lab.merging import ATC, EViT, Method, ToMe, Ward

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


@dataclass
class ToMeTwoThirds(ToMe):
    """In the first two thirds of the blocks, where all constant budgets but the published ones are."""

    places: ClassVar[str] = "two thirds"


@dataclass
class ATCEverywhere(ATC):
    """In every block, a little in each, which is its strongest form."""

    places: ClassVar[str] = "all"


@dataclass
class EViTEverywhere(EViT):
    """In every block."""

    places: ClassVar[str] = "all"


VARIANTS: dict[str, type[Method]] = {
    "ward_cosine": CosineWard,
    "ward_tokens": TokenWard,
    "ward_keys": KeyWard,
    "ward_soft": SoftWard,
    "ward_mean": MeanWard,
    "ward_norm": NormWard,
    "tome_two_thirds": ToMeTwoThirds,
    "atc_everywhere": ATCEverywhere,
    "evit_everywhere": EViTEverywhere,
}
