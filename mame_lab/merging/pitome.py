"""PiToMe: tokens that are like many others merge, distinct ones are protected."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from mame_lab.merging.method import SequenceMethod

if TYPE_CHECKING:
    from mame_lab.merging.plan import MergePlan
    from mame_lab.merging.tokens import Tokens


@dataclass
class PiToMe(SequenceMethod):
    """Spectrum-preserving token merging (Tran et al., arXiv 2405.16148), as its authors run it on image classifiers.

    The energy of a token is the mean of elu(cosine - margin) over all patch tokens, of the attention keys, mean over
    heads; the margin falls from 0.9 in the first block towards 0. In the second half of the blocks (rounded down) the
    2 r tokens of the highest energy are taken alternately, in the order of energy, for sets A and B, and each of A
    merges into its nearest of B. In the first half all patch tokens are divided so, and the r of A merge that are
    nearest to one of B. The paper has no such first half, and in the energy the cosine itself above the margin.

    A merged token is the mean of its parts by their sizes. Published without proportional attention, which
    `prop_attn=false` gives.
    """

    method: str = "pitome"

    needs: ClassVar[frozenset[str]] = frozenset({"keys"})
    places: ClassVar[str] = "all"
    truncates: ClassVar[bool] = True
    gives_up: ClassVar[frozenset[str]] = frozenset({"copies"})
    margin: ClassVar[float] = 0.9
    early: ClassVar[bool] = True

    def for_block(self, block: int, depth: int) -> Self:
        method = copy(self)
        vars(method).update(margin=self.margin * (1 - block / depth), early=2 * block < depth)
        return method

    def plan(self, tokens: Tokens, r: int | None) -> MergePlan:
        from torch.nn.functional import elu

        from mame_lab.merging import matching
        from mame_lab.merging.plan import make_plan, take

        assert r is not None  # `schedule_for` refuses to go without a budget.
        key_BPD = matching.unit(tokens.mean_key()[:, tokens.prefix :])
        energy_BP = matching.patch_mean(elu(key_BPD @ key_BPD.mT - self.margin), tokens)
        order_BQ = matching.highest(energy_BP, key_BPD.shape[1] if self.early else 2 * r)
        a_BQ, b_BQ = order_BQ[:, ::2], order_BQ[:, 1::2]
        similarity_BQQ = take(key_BPD, a_BQ) @ take(key_BPD, b_BQ).mT
        if tokens.valid_BN is not None:
            valid_BP = tokens.valid_BN[:, tokens.prefix :]
            both_BQQ = valid_BP.gather(1, a_BQ)[:, :, None] & valid_BP.gather(1, b_BQ)[:, None]
            similarity_BQQ = similarity_BQQ.masked_fill(~both_BQQ, float("-inf"))
        best_BQ, nearest_BQ = similarity_BQQ.max(2)
        chosen_BR = matching.highest(best_BQ, r)
        target_BR = b_BQ.gather(1, nearest_BQ.gather(1, chosen_BR))
        return make_plan(tokens, a_BQ.gather(1, chosen_BR) + tokens.prefix, target_BR + tokens.prefix)
