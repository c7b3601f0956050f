"""MaMe: matrix-based token merging (Huo and Li, arXiv 2604.13432). An independent implementation of its formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mame_lab.errors import MameLabError
from mame_lab.merging.method import Method
from mame_lab.merging.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from mame_lab.merging.plan import MergePlan

BATCHES = ("per_sample", "union")


@dataclass
class MaMe(Method):
    """MaMe, adaptive by a similarity threshold (the paper) or, with `r`, with a budget of tokens a block.

    Patch tokens are split, by their present place, alternately into targets and sources. The cosine similarity of a
    source with every target, minus `tau`, gives its weights; those at or above their mean survive and are normalised
    to sum 1. A source without a weight is distinctive and stays.

    The similarity is taken on the block's tokens after attention, the first of the choices that the paper leaves
    open. The method is differentiable almost everywhere; a source that goes whole to one target passes no gradient
    to its weight.

    Args:
        tau: similarity above which tokens merge, from -1 to 1; 1 is off. Without `r`, None becomes 0.97. With `r`, None
            gives every merged source whole to its nearest target, and a number spreads it by the paper's weights over
            the targets above `tau` (its best target always stays).
        batch: what adaptive merging does with samples that lose different numbers of tokens: `per_sample` pads the
            shorter ones, a result never depends on the batch; `union` (as published) keeps a source in all samples as
            soon as one needs it.
        method, r, blocks, prop_attn, clamp: see `Method`.

    Raises:
        MameLabError: a value is out of range.
    """

    method: str = "mame"
    tau: float | None = None
    batch: str = "per_sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r is None and self.tau is None:
            self.tau = 0.97
        if self.tau is not None and not -1 <= self.tau <= 1:
            raise MameLabError(f"mame.tau={self.tau} is out of range: give a cosine similarity from -1 to 1 (1 is off)")
        if self.batch not in BATCHES:
            raise MameLabError(f"mame.batch={self.batch} is not known: choose from {', '.join(BATCHES)}")

    @property
    def depends_on_batch(self) -> bool:
        return self.r is None and self.batch == "union"

    def schedule(self, depth: int) -> Schedule:
        if self.r is None and self.tau == 1:
            return Schedule((0,) * depth)
        return super().schedule(depth)

    def plan(self, x_BNC: Tensor, valid_BN: Tensor | None, prefix: int, leave: int | None) -> MergePlan:
        from mame_lab.merging import matching
        from mame_lab.merging.plan import make_plan

        similarity_BTS = matching.cosine_similarity(x_BNC, valid_BN, prefix)
        if leave is not None:
            W_BTS = matching.budget_weights(similarity_BTS, leave, self.tau)
        else:
            assert self.tau is not None
            W_BTS = matching.threshold_weights(similarity_BTS, self.tau)
            if self.batch == "union":
                W_BTS = matching.merge_where_all_do(W_BTS)
        return make_plan(W_BTS, valid_BN, prefix, leave)
