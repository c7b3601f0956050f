"""MaMe by Ward's criterion: what mame_lab found to lose least at every cost, and its default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mame_lab.errors import MameLabError
from mame_lab.merging.bipartite import Adaptive
from mame_lab.merging.schedule import Schedule, make_schedule

if TYPE_CHECKING:
    from torch import Tensor

    from mame_lab.merging.tokens import Tokens


@dataclass
class Ward(Adaptive):
    """Tokens merge where that adds least to the squared distance of all tokens from what stands for them.

    Three choices differ from the paper. The similarity is 1 minus Ward's cost on the normalised tokens that attention
    was given, so that a token that stands for many is moved less readily than one that stands for itself; for two
    tokens of size 1 and mean norm it is their cosine. A source goes whole to its nearest target. A merged token gets
    half (geometrically) of the norm back that a mean loses.

    What that gives up: no gradient passes through W, and size times token is not kept (the sizes are).

    Args:
        tau: see `Adaptive`; 0.95 if neither `tau` nor `r` is set. It has no meaning together with `r`.
        blocks: see `Method`; adaptive merging without it takes place in all blocks: the threshold finds those in which
            merging is harmless.
        method, r, prop_attn, clamp, batch: see `Adaptive`.
    """

    method: str = "ward"
    default_tau: ClassVar[float] = 0.95
    gives_up: ClassVar[frozenset[str]] = frozenset({"mass"})
    keep_norm: ClassVar[float] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        budget = next((key for key in ("r", "flops", "speedup") if getattr(self, key) is not None), None)
        if budget and self.tau is not None:
            raise MameLabError(
                f"mame.{budget}={getattr(self, budget)} and mame.tau={self.tau} exclude each other for mame=ward: "
                f"set one to null"
            )

    def similarity(self, tokens: Tokens) -> Tensor:
        from mame_lab.merging import matching

        return matching.ward_similarity(tokens.input_BNC, tokens)

    def schedule_for(self, depth: int) -> Schedule:
        schedule = super().schedule_for(depth)
        in_all_blocks = self.r is None and self.blocks is None and not isinstance(self.tau, list) and not schedule.off
        return make_schedule(None, depth, depth) if in_all_blocks else schedule
