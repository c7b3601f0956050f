"""Dropping tokens at random: the floor under every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mame_lab.merging.method import SequenceMethod

if TYPE_CHECKING:
    from mame_lab.merging.plan import MergePlan
    from mame_lab.merging.tokens import Tokens


@dataclass
class Drop(SequenceMethod):
    """Patch tokens at odd places are removed at random, and what they held is lost.

    Drawn from torch's global generator, anew in every pass.
    """

    method: str = "drop"
    prop_attn: bool = False

    random: ClassVar[bool] = True
    gives_up: ClassVar[frozenset[str]] = frozenset({"copies", "sizes", "mass"})

    def plan(self, tokens: Tokens, r: int | None) -> MergePlan:
        import torch

        from mame_lab.merging import matching
        from mame_lab.merging.plan import plan_of_places

        assert r is not None  # `schedule_for` refuses to go without a budget.
        _, source_BS = tokens.split(tokens.places())
        score_BS = torch.rand(source_BS.shape, device=source_BS.device)
        return plan_of_places(tokens, source_BS.gather(1, matching.highest(score_BS, r)), None)
