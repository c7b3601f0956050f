"""ToFu: bipartite soft matching that prunes in early blocks and merges, keeping norms, in late ones."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from mame_lab.merging.tome import ToMe

if TYPE_CHECKING:
    from mame_lab.merging.plan import HardPlan
    from mame_lab.merging.tokens import Tokens


@dataclass
class ToFu(ToMe):
    """Token Fusion (Kim et al., arXiv 2312.01026), from its paper; which source goes to which target is as in `ToMe`.

    Early blocks answer to a mean of tokens far from linearly, so there a source is removed and its target keeps its
    value. Late blocks merge by MLERP: the mean of the parts, by their sizes, with the largest norm among them. Here the
    first half of the blocks (rounded down) is early.

    Sizes add up in both, so proportional attention counts what was removed as its target. Published without it, which
    `prop_attn=false` gives.
    """

    method: str = "tofu"

    gives_up: ClassVar[frozenset[str]] = frozenset({"mass"})
    early: ClassVar[bool] = True

    def for_block(self, block: int, depth: int) -> Self:
        method = copy(self)
        vars(method)["early"] = block < depth // 2
        return method

    def plan(self, tokens: Tokens, r: int | None) -> HardPlan:
        import torch

        from mame_lab.merging.plan import HardPlan

        plan = super().plan(tokens, r)
        assert isinstance(plan, HardPlan)  # Targets are not spread.
        if self.early:
            size_BN1 = torch.ones_like(tokens.size_BN1)
            size_BN1.view(-1).index_fill_(0, plan.layout.source_R, 0)
            plan.weight_BN1 = size_BN1
        plan.largest_norm = not self.early
        return plan
