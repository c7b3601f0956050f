"""EViT: the tokens that the class token attends to are kept, the others become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mame_lab.merging.method import SequenceMethod

if TYPE_CHECKING:
    from mame_lab.merging.plan import MergePlan
    from mame_lab.merging.tokens import Tokens


@dataclass
class EViT(SequenceMethod):
    """Token reorganization (Liang et al., Not All Patches Are What You Need, arXiv 2202.07800), from its paper.

    The r + 1 patch tokens that the class token attends to least, mean over heads, are fused into one, in the place of
    the most attended of them: so r are removed, and all but one can be. A keep rate of 0.7 is r = 0.3 here, less the
    fused token. Models without a class token are refused.

    The fused token is the mean of its parts by their attention. The authors' code takes their sum by the attention,
    whose weights sum to less than 1: it is trained with that. Published without proportional attention, which
    `prop_attn=false` gives, in three blocks, at a quarter, a half and three quarters of the depth.
    """

    method: str = "evit"

    needs: ClassVar[frozenset[str]] = frozenset({"keys", "class_query", "class_token"})
    places: ClassVar[str] = "quarters"
    pairs: ClassVar[bool] = False
    gives_up: ClassVar[frozenset[str]] = frozenset({"copies", "mass"})

    def plan(self, tokens: Tokens, r: int | None) -> MergePlan:
        from mame_lab.merging import matching
        from mame_lab.merging.plan import make_plan

        assert r is not None  # `schedule_for` refuses to go without a budget.
        attention_BN = tokens.class_attention().clamp(min=1e-12)
        score_BN = -attention_BN
        if tokens.valid_BN is not None:
            score_BN = score_BN.masked_fill(~tokens.valid_BN, float("-inf"))
        order_BR = matching.highest(score_BN[:, tokens.prefix :], r + 1) + tokens.prefix
        target_BR = order_BR[:, r:].expand(-1, r)
        return make_plan(tokens, order_BR[:, :r], target_BR, weight_BN1=attention_BN[..., None])
