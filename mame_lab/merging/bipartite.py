"""Merging between two halves of the tokens: by a budget, or by a similarity threshold."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mame_lab.errors import MameLabError
from mame_lab.merging.method import GridMethod, SequenceMethod
from mame_lab.merging.numbers import is_number, plain
from mame_lab.merging.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from mame_lab.merging.grid.assignment import Match
    from mame_lab.merging.plan import MergePlan
    from mame_lab.merging.tokens import Tokens

BATCHES = ("per_sample", "packed", "union")


@dataclass
class Bipartite(SequenceMethod):
    """Patch tokens are split, by their present place, alternately into targets and sources; sources merge into targets.

    A method of this kind says how alike two tokens are, and may spread a source over the targets. The `r` sources of a
    sample whose nearest target is closest are removed, ties to the lower index.
    """

    def plan(self, tokens: Tokens, r: int | None) -> MergePlan:
        import torch

        from mame_lab.merging import matching
        from mame_lab.merging import plan as plans
        from mame_lab.merging.layout import choose, layout_of_some, layout_without

        similarity_BTS = matching.without_padding(self.similarity(tokens), tokens)
        best_BS, nearest_BS = similarity_BTS.max(1)  # On a CPU 2 to 4 times faster than argmax.
        W_BTS = self.weights(similarity_BTS, best_BS)
        target_BT, source_BS = tokens.split(tokens.places())
        if r is None:
            removed_BS = self.removed(best_BS)
            if W_BTS is None:
                return plans.plan_of_some(tokens, source_BS, target_BT.gather(1, nearest_BS), removed_BS)
            chosen_R, lost = choose(removed_BS)
            layout = layout_of_some(tokens, source_BS.flatten().index_select(0, chosen_R), lost)
            return plans.make_soft_plan(tokens, layout, W_BTS, removed_BS)
        order_BR = matching.highest(best_BS, r)
        source_BR = source_BS.gather(1, order_BR)
        if W_BTS is None:
            target_BR = target_BT.gather(1, nearest_BS.gather(1, order_BR))
            return plans.plan_of_places(tokens, source_BR, target_BR)
        removed_BS = torch.zeros_like(best_BS, dtype=torch.bool).scatter_(1, order_BR, 1)
        return plans.make_soft_plan(tokens, layout_without(tokens, source_BR), W_BTS, removed_BS)

    @abstractmethod
    def similarity(self, tokens: Tokens) -> Tensor:
        """How alike every target and every source are: similarity_BTS; any value for padding."""

    def weights(self, similarity_BTS: Tensor, best_BS: Tensor) -> Tensor | None:
        """The share of each source that would go to each target, W_BTS; None: whole to its nearest target.

        Columns of W sum to 1; those of sources that are not removed do not count. `best_BS` is the similarity of each
        source with its nearest target.
        """
        return None

    def removed(self, best_BS: Tensor) -> Tensor:
        """Which sources are removed where there is no budget, by the similarity of each with its nearest target."""
        raise AssertionError  # `schedule_for` refuses to go without a budget.


@dataclass
class Adaptive(Bipartite, GridMethod):
    """Sources that have a target more similar than `tau` are removed; with `r`, the `r` closest ones of every block.

    Args:
        tau: similarity above which tokens merge, from -1 to 1; 1 is off. A list has one entry for each block of the
            model. Without `r` or a target, None becomes `default_tau`, if the method has one.
        batching: what adaptive merging does with samples of which different numbers of tokens are removed:
            `per_sample` pads the shorter ones, a result never depends on the batch; `packed` computes the same, but
            runs the batch as one sequence without padding (while any of the model trains, it pads); `union` (as
            published) removes a source only where every sample would.

    Raises:
        MameLabError: a value is out of range.
    """

    tau: Any = None
    batching: str = "per_sample"

    has_threshold: ClassVar[bool] = True
    default_tau: ClassVar[float | None]

    def __post_init__(self) -> None:
        self.tau = plain(self.tau)
        super().__post_init__()
        if self.r is None and self.tau is None and not self.has_target:
            self.tau = self.default_tau
        if self.schedule is not None and self.r is None and not self.has_target and not isinstance(self.tau, list):
            raise MameLabError(
                f"mame.schedule={self.schedule} shares out a budget or a target: set mame.r, mame.flops or mame.speedup"
            )
        taus = self.tau if isinstance(self.tau, list) else [] if self.tau is None else [self.tau]
        if not all(is_number(tau) and -1 <= tau <= 1 for tau in taus):
            raise MameLabError(
                f"mame.tau={self.tau} is out of range or no number: give a similarity from -1 to 1 (1 is off), or a "
                f"list of these with one entry for each block"
            )
        if isinstance(self.tau, list):
            self._check_list()
        if self.batching not in BATCHES:
            raise MameLabError(f"mame.batching={self.batching} is not known: choose from {', '.join(BATCHES)}")
        self._check_read()

    def _check_read(self) -> None:
        """Raise MameLabError for a setting that nothing reads beside the others."""
        solved = self.has_target and self.solve == "adaptive"
        if self.batching != "per_sample" and not (solved or (self.is_adaptive and not self.has_target)):
            raise MameLabError(
                f"mame.batching={self.batching} is for adaptive merging, and without mame.tau, or a target with "
                f"mame.solve=adaptive, as many tokens of every image are removed: leave it out"
            )
        if self.clamp and (solved or not (self.has_target or self.r is not None)):
            raise MameLabError("mame.clamp=true truncates a budget, and here is none: set mame.r, or leave it out")
        if self.tau is not None and solved:
            raise MameLabError(
                f"mame.tau={self.tau} and mame.solve=adaptive exclude each other, for the thresholds are solved "
                f"for: leave one of the two"
            )

    def _check_list(self) -> None:
        for key in ("r", "flops", "speedup", "blocks", "schedule"):
            if getattr(self, key) is not None:
                raise MameLabError(
                    f"mame.{key}={getattr(self, key)} contradicts mame.tau={self.tau}: a list says for every block "
                    f"what merges, 1 for nothing"
                )

    @property
    def is_adaptive(self) -> bool:
        return self.r is None and self.tau is not None

    @property
    def depends_on_batch(self) -> bool:
        return self.is_adaptive and self.batching == "union"

    @property
    def packed(self) -> bool:
        return self.is_adaptive and self.batching == "packed"

    def with_budget(self, r: float, **changes: Any) -> Self:
        """As `Method.with_budget`; a threshold is kept where it only says how a source is spread."""
        return super().with_budget(r, tau=None if self.is_adaptive else self.tau, batching="per_sample", **changes)

    def schedule_for(self, depth: int) -> Schedule:
        if isinstance(self.tau, list):
            if len(self.tau) != depth:
                raise MameLabError(
                    f"mame.tau={self.tau} has {len(self.tau)} entries: give one for each of {depth} blocks"
                )
            return Schedule(tuple(0 if tau == 1 else None for tau in self.tau))
        if self.r is None and self.tau == 1:
            return Schedule((0,) * depth)
        return super().schedule_for(depth)

    def for_block(self, block: int, depth: int) -> Self:
        return replace(self, tau=self.tau[block]) if isinstance(self.tau, list) else self

    def match(self, x_BNC: Tensor, grid: tuple[int, int]) -> Match:
        from mame_lab.merging.grid import windows

        return windows.match(self.similarity, x_BNC, grid, self.grid.window)

    def level(self, tau: float) -> float:
        """The similarity, as `similarity` has it, at this threshold."""
        return tau

    def tau_at(self, similarity: float) -> float:
        """The threshold at this similarity."""
        return similarity

    def removed(self, best_BS: Tensor) -> Tensor:
        assert self.tau is not None
        removed_BS = best_BS > self.level(self.tau)
        return removed_BS & removed_BS.all(0) if self.batching == "union" else removed_BS
