"""ToMe: what most methods of merging are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mame_lab.merging.bipartite import Bipartite

if TYPE_CHECKING:
    from torch import Tensor

    from mame_lab.merging.tokens import Tokens


@dataclass
class ToMe(Bipartite):
    """Bipartite soft matching (Bolya et al., Token Merging: Your ViT But Faster, arXiv 2210.09461), from its paper.

    The cosine similarity of the attention keys, mean over heads, decides; a source merges whole into its nearest
    target, and a merged token is the mean of its parts by their sizes. In rotary models the keys are those after
    rotation. Published with proportional attention, and with `r` in every block, truncated to half of the patch tokens
    there.
    """

    method: str = "tome"

    needs: ClassVar[frozenset[str]] = frozenset({"keys"})
    places: ClassVar[str] = "all"
    truncates: ClassVar[bool] = True

    def similarity(self, tokens: Tokens) -> Tensor:
        from mame_lab.merging import matching

        return matching.cosine_similarity(tokens.mean_key(), tokens)
