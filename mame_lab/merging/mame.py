"""MaMe as published: matrix-based token merging (Huo and Li, arXiv 2604.13432). An independent implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mame_lab.merging.bipartite import Adaptive

if TYPE_CHECKING:
    from torch import Tensor

    from mame_lab.merging.tokens import Tokens


@dataclass
class MaMe(Adaptive):
    """The paper's formulas: cosine similarity, and a source spread over the targets that are like it.

    The similarity of a source with every target, minus `tau`, gives its weights; those at or above their mean survive
    and are normalised to sum 1. The similarity is taken on the block's tokens after attention, the first of the
    choices that the paper leaves open. Sums of sizes and of size times token are kept. The method is differentiable
    almost everywhere; a source that merges whole into one target passes no gradient to its weight.

    Args:
        tau: see `Adaptive`; 0.97 if neither `tau` nor `r` is set. With `r`, None merges every removed source whole
            into its nearest target, and a number spreads it by the paper's weights over the targets above `tau` (of
            which the nearest is always one).
    """

    method: str = "mame"
    default_tau: ClassVar[float | None] = 0.97

    def similarity(self, tokens: Tokens) -> Tensor:
        from mame_lab.merging import matching

        return matching.cosine_similarity(tokens.x_BNC, tokens)

    def weights(self, similarity_BTS: Tensor, best_BS: Tensor) -> Tensor | None:
        from mame_lab.merging import matching

        return None if self.tau is None else matching.threshold_weights(similarity_BTS, best_BS, self.tau)
