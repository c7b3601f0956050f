"""ATC: agglomerative clustering of the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mame_lab.merging.method import SequenceMethod

if TYPE_CHECKING:
    import numpy as np

    from mame_lab.merging.plan import MergePlan
    from mame_lab.merging.tokens import Tokens


@dataclass
class ATC(SequenceMethod):
    """Agglomerative token clustering (Haurum et al., arXiv 2409.11923), from its paper.

    The two clusters that are nearest merge, r times: by the cosine distance of the attention keys, mean over heads, and
    average linkage. A cluster becomes the mean of its tokens by their sizes, in the place of its first one. So all
    patch tokens but one can be removed. Proportional attention is a choice of the paper. Published in three blocks,
    at a quarter, a half and three quarters of the depth.

    It is slow: in every merging block each sample is clustered by itself, by scipy on the CPU, which a GPU waits for.
    """

    method: str = "atc"

    needs: ClassVar[frozenset[str]] = frozenset({"keys"})
    places: ClassVar[str] = "quarters"
    pairs: ClassVar[bool] = False
    gives_up: ClassVar[frozenset[str]] = frozenset({"graph"})

    def plan(self, tokens: Tokens, r: int | None) -> MergePlan:
        import torch

        from mame_lab.merging import matching
        from mame_lab.merging.plan import make_plan

        assert r is not None  # `schedule_for` refuses to go without a budget.
        key_BPD = matching.unit(tokens.mean_key()[:, tokens.prefix :]).detach()
        distance_BPP = (1 - key_BPD @ key_BPD.mT).clamp(min=0).nan_to_num().cpu().numpy()
        patches = [key_BPD.shape[1]] * len(key_BPD)
        if tokens.valid_BN is not None:
            patches = (tokens.valid_BN.sum(1) - tokens.prefix).tolist()
        cluster = torch.compiler.disable(merged)  # Else torch.compile looks into scipy.
        pairs = [cluster(each[:p, :p], r) for each, p in zip(distance_BPP, patches, strict=True)]
        pairs_BR2 = torch.tensor(pairs, dtype=torch.long, device=key_BPD.device).view(-1, r, 2) + tokens.prefix
        return make_plan(tokens, pairs_BR2[..., 0], pairs_BR2[..., 1])


def merged(distance_PP: np.ndarray, removed: int) -> list[tuple[int, int]]:
    """The points that are removed where the two nearest clusters merge so often, each with the first of its cluster."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    tree = linkage(squareform(distance_PP, checks=False), "average")
    firsts, into = list(range(len(distance_PP))), {}
    for left, right in tree[:removed, :2].astype(int):  # Points and earlier clusters, the nearest pair first.
        first, other = sorted((firsts[left], firsts[right]))
        firsts.append(first)
        into[other] = first
    for point in reversed(into):  # What it was merged into may have been merged itself, later.
        into[point] = into.get(into[point], into[point])
    return list(into.items())
