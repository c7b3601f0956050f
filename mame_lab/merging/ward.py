"""MaMe by Ward's criterion: the default of mame_lab."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from mame_lab.errors import MameLabError
from mame_lab.merging.bipartite import Adaptive
from mame_lab.merging.schedule import Schedule, geometric_blocks

if TYPE_CHECKING:
    from torch import Tensor

    from mame_lab.merging.tokens import Tokens

# The share of the patch tokens that remain at the end where nothing says how many.
KEPT = 1 / 3


@dataclass
class Ward(Adaptive):
    """Tokens merge where that moves least what later tokens attend to, and what attention has made of them.

    Three choices differ from the paper. The similarity is 1 minus Ward's cost w_t w_s / (w_t + w_s) d_ts, where d is
    the product of two distances: |k_t - k_s| of the attention keys of all heads over their root mean square, and
    |x_t - x_s| of the tokens after attention, normalised; for what two tokens do together goes wrong by the product of
    how differently they are attended to and how different they are. A token weighs the fourth root of its size times
    the attention that the first prefix token pays it, the class token where there is one (the square root of its size
    in a model without prefix tokens): tokens of a large size, or that are looked at, merge late. And a source merges
    whole into its nearest target.

    Sums of sizes and of size times token are kept. No gradient passes through the choice. In a U-Net, where merging
    comes before attention, d is the squared distance of the tokens that enter attention.

    Args:
        tau: see `Adaptive`. It has no meaning together with `r`. Without both, and without a target, a third
            (`KEPT`) of the patch tokens remain at the end: the same share is removed in each block of a geometric
            schedule, but never more than half of those present.
        blocks: see `Method`; with `tau`, None is all blocks: the threshold finds those in which merging is harmless.
    """

    method: str = "ward"
    default_tau: ClassVar[float | None] = None
    needs: ClassVar[frozenset[str]] = frozenset({"keys", "queries"})

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
            return matching.ward_similarity(self.distance(tokens), self.weight(tokens), tokens)

    def distance(self, tokens: Tokens) -> Tensor:
        """How far apart every target and every source are, as a square: (B, T, S); any value for padding."""
        from mame_lab.merging import matching

        if tokens.key_BHND is None:
            return matching.squared_distance(tokens.input_BNC, tokens)
        of_keys_BTS = matching.squared_distance(tokens.keys(), tokens)
        of_tokens_BTS = matching.cosine_similarity(tokens.x_BNC, tokens).mul_(-2).add_(2)
        return of_keys_BTS.mul_(of_tokens_BTS).relu_().sqrt_()

    def weight(self, tokens: Tokens) -> Tensor:
        """How much each token weighs, (B, N, 1); any value for padding."""
        if not tokens.prefix:
            return tokens.size_BN1.sqrt()
        attention_BN1 = tokens.class_attention()[..., None].clamp(min=1e-12)
        size_B11, attention_B11 = (y[:, tokens.prefix :].sum(1, keepdim=True) for y in (tokens.size_BN1, attention_BN1))
        return (tokens.size_BN1 * attention_BN1 * size_B11 / attention_B11) ** 0.25

    def schedule_for(self, depth: int) -> Schedule:
        if self.r is not None or self.tau is not None or self.has_target:
            return super().schedule_for(depth)
        blocks = self.merging_blocks(depth)
        share = min(1 - KEPT ** (1 / max(len(blocks), 1)), 0.5)
        return replace(self, r=share, blocks=blocks).schedule_for(depth)

    def merging_blocks(self, depth: int) -> list[int]:
        if self.blocks is not None or self.r is not None or self.has_target:
            return super().merging_blocks(depth)
        return list(range(depth)) if self.is_adaptive else geometric_blocks(depth, KEPT)
