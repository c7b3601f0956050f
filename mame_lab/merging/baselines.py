"""What MaMe is compared with, on the same path: ToMe, and dropping at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mame_lab.merging.bipartite import Bipartite
from mame_lab.merging.method import Method

if TYPE_CHECKING:
    from torch import Tensor

    from mame_lab.merging.plan import MergePlan
    from mame_lab.merging.tokens import Tokens


@dataclass
class ToMe(Bipartite):
    """Bipartite soft matching (Bolya et al., Token Merging: Your ViT But Faster, arXiv 2210.09461), from its paper.

    The cosine similarity of the attention keys, mean over heads, decides; a source goes whole to its nearest target.
    Sums of sizes and of size times token are kept. In rotary models the keys are those after rotation.
    """

    method: str = "tome"
    needs_keys: ClassVar[bool] = True

    def similarity(self, tokens: Tokens) -> Tensor:
        from mame_lab.merging import matching

        assert tokens.key_BND is not None
        return matching.cosine_similarity(tokens.key_BND, tokens)


@dataclass
class Drop(Method):
    """Sources leave at random, and what they held is lost: the floor under every method.

    Neither sizes nor size times token are kept. Drawn from torch's global generator, anew in every pass.
    """

    method: str = "drop"
    prop_attn: bool = False

    def plan(self, tokens: Tokens, leave: int | None) -> MergePlan:
        import torch

        from mame_lab.merging import matching
        from mame_lab.merging.plan import make_plan

        assert leave is not None  # `schedule_for` refuses to go without a budget.
        _, source_BSC = tokens.split(tokens.size_BN1)
        score_BS = torch.rand_like(source_BSC[..., 0])
        return make_plan(tokens, matching.closest(score_BS[:, None], leave), None, leave)
