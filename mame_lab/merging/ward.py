"""MaMe by Ward's criterion: the default of mame_lab."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from mame_lab.errors import MameLabError
from mame_lab.merging.bipartite import Adaptive
from mame_lab.merging.schedule import Schedule, geometric_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mame_lab.merging.tokens import Tokens

# The share of the patch tokens that remain at the end where nothing says how many.
KEPT = 1 / 3
# The least channels of the tokens that are compared.
FEWEST_CHANNELS = 64


def share(tokens: Tokens) -> float:
    """What one patch token is of those of a sample."""
    return 1 / (tokens.x_BNC.shape[1] - tokens.prefix)


@dataclass
class Ward(Adaptive):
    """Tokens merge where that moves least what later tokens attend to, and what attention has made of them.

    Three choices differ from the paper. Those merge first whose Ward cost 2 w_t w_s / (w_t + w_s) d_ts is least, where
    d is the product of two: 1 minus the correlation of the attention keys, mean over heads, and 1 minus that of the
    tokens after attention, of which the first eighth of the channels (64 at the least) says enough; for what two tokens
    do together goes wrong by the product of how differently they are attended to and how different they are. A token
    weighs its size times its attraction: the root of exp of the class token's attention logit, mean over heads, over
    the harmonic mean of these (of the first prefix token's; 1 in a model without prefix tokens). So tokens of a large
    size, or that are looked at, merge late. And a source merges whole into its nearest target.

    Sums of sizes and of size times token are kept. No gradient passes through the choice. In a U-Net, where merging
    comes before attention, d is half the squared distance of the tokens that enter attention.

    Args:
        tau: see `Adaptive`; it is compared with 1 minus the root of the cost, which of two tokens of weight 1 is their
            correlation. It has no meaning together with `r`. Without both, and without a target, a third
            (`KEPT`) of the patch tokens remain at the end: the same share is removed in each block of a geometric
            schedule, but never more than half of those present.
        blocks: see `Method`; with `tau`, None is all blocks: the threshold finds those in which merging is harmless.
    """

    method: str = "ward"
    default_tau: ClassVar[float | None] = None
    needs: ClassVar[frozenset[str]] = frozenset({"keys", "class_query"})

    def __post_init__(self) -> None:
        super().__post_init__()
        budget = next((key for key in ("r", "flops", "speedup") if getattr(self, key) is not None), None)
        if budget and self.tau is not None:
            raise MameLabError(
                f"mame.{budget}={getattr(self, budget)} and mame.tau={self.tau} exclude each other for mame=ward: "
                f"set one to null"
            )

    def similarity(self, tokens: Tokens) -> Tensor:
        import torch

        from mame_lab.merging import matching

        with torch.no_grad():
            return matching.ward_similarity(self.distance(tokens), self.lightness(tokens), tokens)

    def level(self, tau: float) -> float:
        return -((1 - tau) ** 2)

    def tau_at(self, similarity: float) -> float:
        return 1 - max(-similarity, 0.0) ** 0.5

    def distance(self, tokens: Tokens) -> Tensor:
        """Minus how far apart every target and every source are, as a square: (B, T, S); any value for padding.

        As a share of the number of patch tokens, for that many are the parts into which `repulsion` divides 1.
        """
        from mame_lab.merging import matching

        if tokens.key_BHND is None:
            return matching.squared_distance(tokens.x_BNC, tokens).mul_(-share(tokens))
        return matching.uncorrelated(self.compared(tokens), tokens, -2 * share(tokens))

    def compared(self, tokens: Tokens) -> Sequence[Tensor]:
        """What two tokens are compared by: the products of the distances by each (B, N, C)."""
        return tokens.mean_key(), tokens.x_BNC[..., : max(tokens.x_BNC.shape[2] // 8, FEWEST_CHANNELS)]

    def lightness(self, tokens: Tokens) -> Tensor:
        """1 over how much each patch token weighs, (B, P, 1); any value for padding."""
        return self.repulsion(tokens) / tokens.size_BN1[:, tokens.prefix :]

    def repulsion(self, tokens: Tokens) -> Tensor:
        """How little each patch token is looked at, (B, P, 1) or (1, 1, 1), of mean 1 / P."""
        if not tokens.prefix or tokens.key_BHND is None:
            return tokens.size_BN1.new_full((1, 1, 1), share(tokens))
        return tokens.class_repulsion()

    def schedule_for(self, depth: int) -> Schedule:
        if self.r is not None or self.tau is not None or self.has_target:
            return super().schedule_for(depth)
        blocks = self.merging_blocks(depth)
        of_present = min(1 - KEPT ** (1 / max(len(blocks), 1)), 0.5)
        return replace(self, r=of_present, blocks=blocks).schedule_for(depth)

    def merging_blocks(self, depth: int) -> list[int]:
        if self.blocks is not None or self.r is not None or self.has_target:
            return super().merging_blocks(depth)
        return list(range(depth)) if self.is_adaptive else geometric_blocks(depth, KEPT)
