"""MCTF: tokens merge by how alike, how little attended to and how small they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mame_lab.merging.method import SequenceMethod

if TYPE_CHECKING:
    from mame_lab.merging.plan import MergePlan
    from mame_lab.merging.tokens import Tokens


@dataclass
class MCTF(SequenceMethod):
    """Multi-criteria token fusion (Lee et al., arXiv 2403.10030), from its paper: the part that needs no training.

    The attraction of two tokens i and j is ((1 + cos(x_i, x_j)) / 2) (a_i a_j)^(-1/20) (s_i s_j)^(-1/40): how alike
    they are, how little attention they get (a is the mean over heads and queries), how small they are. Patch tokens are
    taken alternately for two sets. Half of r (rounded down) of the one merge into the other, the pairs of the highest
    attraction first; then the rest of r, of the other into what remains of the one. A merged token is the mean of its
    parts by a_i s_i.

    The attention is that of the block in which they merge, where the paper looks one step ahead, at that of the next on
    the tokens before they merge: here an MLP lies between. It is computed a second time, for fused attention does not
    give it. Published with proportional attention, in all blocks but the first, and with `r` truncated to half of the
    patch tokens there.
    """

    method: str = "mctf"

    needs: ClassVar[frozenset[str]] = frozenset({"keys", "queries"})
    places: ClassVar[str] = "all but the first"
    truncates: ClassVar[bool] = True
    gives_up: ClassVar[frozenset[str]] = frozenset({"copies", "mass"})
    temperatures: ClassVar[tuple[float, float]] = 20, 40

    def plan(self, tokens: Tokens, r: int | None) -> MergePlan:
        import torch

        from mame_lab.merging import matching
        from mame_lab.merging.plan import plan_of_places

        assert r is not None  # `schedule_for` refuses to go without a budget.
        attention_BN1 = tokens.attention_received()[..., None].clamp(min=1e-12)
        score_BTS = matching.attraction(attention_BN1, tokens, *self.temperatures)
        best_BS, nearest_BS = score_BTS.max(1)
        there_BR = matching.highest(best_BS, r // 2)
        gone_BS = torch.zeros_like(best_BS, dtype=torch.bool).scatter(1, there_BR, 1)
        best_BT, nearest_BT = score_BTS.masked_fill(gone_BS[:, None], float("-inf")).max(2)
        back_BR = matching.highest(best_BT, r - r // 2)

        target_BT, source_BS = tokens.split(tokens.places())
        into_BT = target_BT.scatter(1, back_BR, source_BS.gather(1, nearest_BT.gather(1, back_BR)))
        source_BR = torch.cat([source_BS.gather(1, there_BR), target_BT.gather(1, back_BR)], 1)
        target_BR = into_BT.gather(1, torch.cat([nearest_BS.gather(1, there_BR), back_BR], 1))
        return plan_of_places(tokens, source_BR, target_BR, weight_BN1=attention_BN1 * tokens.size_BN1)
