"""PiToMe: tokens that are like many others merge, distinct ones are protected."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mame_lab.merging.method import Method

if TYPE_CHECKING:
    from mame_lab.merging.plan import MergePlan
    from mame_lab.merging.tokens import Tokens


@dataclass
class PiToMe(Method):
    """Spectrum-preserving token merging (Tran et al., arXiv 2405.16148), from its paper.

    The energy of a token is the mean of f(cosine) over all patch tokens, of the attention keys, mean over heads: f(x)
    is x from a margin on, and exp(x - margin) - 1 below it; the margin falls from 0.9 in the first block towards 0. The
    2 r tokens of the highest energy are taken alternately, in the order of energy, for sets A and B, and each of A
    merges into its nearest of B. No other tokens merge.

    A merged token is the mean of its parts by their sizes. Published without proportional attention, which
    `prop_attn=false` gives. The authors' code differs from the paper: f is there elu(x - margin), the margin of some
    models starts at 0.75, and in the first half of the blocks all tokens are divided into A and B.
    """

    method: str = "pitome"

    needs: ClassVar[frozenset[str]] = frozenset({"keys"})
    places: ClassVar[str] = "all"
    truncates: ClassVar[bool] = True
    gives_up: ClassVar[frozenset[str]] = frozenset({"copies"})
    margin: ClassVar[float] = 0.9

    def of_block(self, block: int, depth: int) -> PiToMe:
        method = copy(self)
        vars(method)["margin"] = self.margin * (1 - block / depth)
        return method

    def plan(self, tokens: Tokens, leave: int | None) -> MergePlan:
        from mame_lab.merging import matching
        from mame_lab.merging.plan import make_plan, take

        assert leave is not None  # `schedule_for` refuses to go without a budget.
        key_BPD = matching.unit(tokens.mean_key()[:, tokens.prefix :])
        order_BQ = matching.highest(matching.energy(key_BPD, self.margin, tokens), 2 * leave)
        a_BR, b_BR = order_BQ[:, ::2], order_BQ[:, 1::2]
        nearest_BR = (take(key_BPD, a_BR) @ take(key_BPD, b_BR).mT).max(2).indices
        return make_plan(tokens, a_BR + tokens.prefix, b_BR.gather(1, nearest_BR) + tokens.prefix)
