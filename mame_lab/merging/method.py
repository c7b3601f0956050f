"""What every merge method shares, the settings that say where and how much, and the two contracts of a merge step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from textwrap import shorten
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mame_lab.errors import MameLabError
from mame_lab.merging.grid.settings import Grid
from mame_lab.merging.numbers import is_int, is_number, plain
from mame_lab.merging.schedule import PLACES, SHAPES, Schedule, indices, over_blocks, shaped

if TYPE_CHECKING:
    from torch import Tensor

    from mame_lab.merging.grid.assignment import Match
    from mame_lab.merging.plan import MergePlan
    from mame_lab.merging.tokens import Tokens

# What holds for a merge step of any method that does not give it up. That prefix tokens keep place and value, that a
# sample does not depend on its batch (except where `depends_on_batch`), that gradients are those of the merge: always.
CONTRACTS = {
    "copies": "tokens of which another is a copy are the first to be removed, which changes nothing",
    "sizes": "the sum of the sizes is kept",
    "mass": "the sum of the sizes times the tokens is kept",
    "graph": "with a budget shapes are static, and a model compiles into one graph",
}

# What a target is solved to.
SOLVES = ("static", "adaptive")


@dataclass
class Method:
    """A way to merge tokens; the `mame` group of the configuration. See `SequenceMethod` and `GridMethod`.

    Args:
        method: the name of the method, the key of `merging.METHODS`.
        r: tokens that are removed in every merging block: an int, a fraction in (0, 1) of the patch tokens present
            there (rounded down), or a list with one entry for each block of the model.
        flops: instead of `r`, the share of the unmerged model's multiply-adds to come down to, in (0, 1).
        speedup: instead, how many times faster than the unmerged model to become.
        schedule: how the removed tokens are shared out over the merging blocks. `constant`: `r` in each (the default
            with `r`); `linear`: falling from 2 r to 0, as ToMe proposes; `diffrate`: by the rates that DiffRate learned
            for DeiT-S (see `schedule.DIFFRATE`). With a target also `geometric`, its default: the same share of the
            tokens that are present in every block.
        solve: what a target is solved to. `static`, the default: a number of tokens for each block; `adaptive`: a
            threshold `tau` for each block, by which as many are removed of an image on average.
        blocks: where to merge: the first n blocks or a list of indices. None: where the method is published (`places`);
            in all of them where the schedule is linear or diffrate; where it is geometric, in all but the last twelfth,
            of a light budget not in the first ones either (see `geometric_blocks`).
        prop_attn: proportional attention: add the log of a token's size to its attention logits. Models trained
            without a supervised objective (MAE) are reported to do better without it.
        clamp: where fewer than `r` tokens can be removed in a block, remove all of these instead of raising an error.
        grid: of merging in a U-Net, whose blocks are the resolutions at which it has self-attention, the finest first.

    Attributes:
        has_threshold: whether the method can do without a budget: the tokens decide how many are removed.
        places: the blocks that merge if `blocks` is None, a key of `schedule.PLACES`.
        truncates: whether its authors clamp `r` of their own accord: it is clamped whatever `clamp` says, and logged.
        pairs: see `Schedule`.
        gives_up: which of `CONTRACTS` do not hold.
        random: whether it draws anew in every pass.

    Raises:
        MameLabError: a value is out of range, or contradicts another.
    """

    method: str = "???"
    r: Any = None
    flops: float | None = None
    speedup: float | None = None
    schedule: str | None = None
    solve: str | None = None
    blocks: Any = None
    prop_attn: bool = True
    clamp: bool = False
    grid: Grid = field(default_factory=Grid)

    has_threshold: ClassVar[bool] = False
    places: ClassVar[str] = "two thirds"
    truncates: ClassVar[bool] = False
    pairs: ClassVar[bool] = True
    gives_up: ClassVar[frozenset[str]] = frozenset()
    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for key in ("r", "flops", "speedup", "blocks", "prop_attn", "clamp"):
            setattr(self, key, plain(getattr(self, key)))
        if isinstance(self.grid, dict):  # As a file of settings has it.
            self.grid = Grid(**self.grid)
        if not isinstance(self.grid, Grid):
            raise MameLabError(f"mame.grid={self.grid!r} is not valid: give its settings, such as dict(window=8)")
        for key in ("prop_attn", "clamp"):
            if not isinstance(getattr(self, key), bool):
                raise MameLabError(f"mame.{key}={getattr(self, key)!r} is not valid: give true or false")
        self._check_r()
        self._check_blocks()
        self._check_target()
        self._check_solve()

    def _check_r(self) -> None:
        for amount in self.r if isinstance(self.r, list) else [self.r]:
            whole, fraction = is_int(amount) and amount >= 0, isinstance(amount, float) and 0 < amount < 1
            if self.r is not None and not whole and not fraction:
                raise MameLabError(
                    f"mame.r={self.r!r} is not valid: give a whole number of tokens (8, not 8.0; 0 for none), a "
                    f"fraction between 0 and 1, or a list of these with one entry for each block"
                )
        for key in ("blocks", "schedule"):
            if isinstance(self.r, list) and getattr(self, key) not in (None, "constant"):
                raise MameLabError(
                    f"mame.{key}={getattr(self, key)} contradicts mame.r={self.r}: a list names every block, 0 for none"
                )

    def _check_blocks(self) -> None:
        given = self.blocks if isinstance(self.blocks, list) else [self.blocks]
        if (self.blocks is not None and not all(map(is_int, given))) or (is_int(self.blocks) and self.blocks < 0):
            raise MameLabError(
                f"mame.blocks={self.blocks!r} is not valid: give the number of blocks that merge, or a list of indices"
            )

    def _check_target(self) -> None:
        budgets = {key: getattr(self, key) for key in ("r", "flops", "speedup") if getattr(self, key) is not None}
        if len(budgets) > 1:
            given = " and ".join(f"mame.{key}={value}" for key, value in budgets.items())
            raise MameLabError(f"{given} exclude each other: set all but one to null")
        if self.flops is not None and not (is_number(self.flops) and 0 < self.flops < 1):
            raise MameLabError(
                f"mame.flops={self.flops!r} is out of range or no number: give a share of the multiply-adds, in (0, 1)"
            )
        if self.speedup is not None and not (is_number(self.speedup) and self.speedup > 1):
            raise MameLabError(f"mame.speedup={self.speedup!r} is out of range or no number: give a factor above 1")
        if self.schedule == "adaptive":
            raise MameLabError("mame.schedule=adaptive is called mame.solve=adaptive now: write that")
        choices = ("geometric", *SHAPES) if self.has_target else tuple(SHAPES)
        if self.schedule is not None and self.schedule not in choices:
            unless = "" if self.has_target else " (geometric needs mame.flops or mame.speedup)"
            raise MameLabError(
                f"mame.schedule={self.schedule} is not known here: choose from {', '.join(choices)}{unless}"
            )

    def _check_solve(self) -> None:
        if self.solve not in (None, *SOLVES):
            raise MameLabError(f"mame.solve={self.solve} is not known: choose from {', '.join(SOLVES)}")
        if self.solve is not None and not self.has_target:
            raise MameLabError(f"mame.solve={self.solve} says how a target is met: set mame.flops or mame.speedup")
        if self.solve == "adaptive" and not self.has_threshold:
            raise MameLabError(
                f"mame.solve=adaptive is not for mame={self.method}, which has no threshold: leave it out"
            )

    @property
    def has_target(self) -> bool:
        """Whether the schedule is still to be solved for (`mame_lab.solve`)."""
        return self.flops is not None or self.speedup is not None

    @property
    def is_adaptive(self) -> bool:
        """Whether the number of tokens that are removed depends on the input: a threshold decides."""
        return False

    @property
    def depends_on_batch(self) -> bool:
        """Whether the tokens of a sample depend on the other samples of its batch."""
        return False

    @property
    def packed(self) -> bool:
        """Whether a batch runs as one sequence of the tokens of all its samples."""
        return False

    def with_budget(self, r: float, **changes: Any) -> Self:
        """The same method with one budget for all blocks in the place of whatever says how much merges.

        It merges in the same blocks and by the same schedule, except in the place of a list, a threshold or no setting
        at all, which say neither: then it is `constant`, in the blocks that `blocks` says.

        Raises:
            MameLabError: `r` is not a number of tokens or a fraction of them.
        """
        if not isinstance(plain(r), int | float):
            raise MameLabError(f"{r} is no budget: give a number of tokens, or a fraction between 0 and 1")
        return replace(self, r=r, flops=None, speedup=None, **changes)

    def schedule_for(self, depth: int) -> Schedule:
        """The tokens that are removed in each of `depth` blocks."""
        if self.has_target:
            raise MameLabError("mame.flops and mame.speedup are targets: apply what mame_lab.solve makes of them")
        if self.r is None and not self.has_threshold:
            raise MameLabError(f"mame={self.method} needs a budget: set mame.r, mame.flops or mame.speedup")
        if isinstance(self.r, list):
            if len(self.r) != depth:
                raise MameLabError(
                    f"mame.r={self.r} has {len(self.r)} entries: give one for each of the {depth} blocks"
                )
            amounts = tuple(self.r)
        else:
            blocks = self.merging_blocks(depth)
            each = [None] * len(blocks) if self.r is None else shaped(self.r, self.schedule or "constant", len(blocks))
            amounts = over_blocks(each, blocks, depth)
        return Schedule(amounts, self.clamp or self.truncates, self.pairs)

    def merging_blocks(self, depth: int) -> list[int]:
        """The indices of the blocks that merge, in a model of `depth` blocks."""
        if self.blocks is not None:
            return indices(self.blocks, depth)
        return PLACES[self.places if self.schedule in (None, "constant") else "all"](depth)

    def __str__(self) -> str:
        """The method and the settings that are not defaults."""
        settings = ((entry.name, getattr(self, entry.name), entry.default) for entry in fields(self)[1:])
        said = [f"{name}={x}" for name, x, default in settings if x not in (default, Grid())]
        return f"{self.method}({', '.join(said)})"


# What of `SequenceMethod.needs` is seen within attention.
LOOKS = frozenset({"keys", "queries", "class_query"})


@dataclass
class SequenceMethod(Method, ABC):
    """A method for vision transformers, whose sequence is shorter from a merge step on.

    Attributes:
        needs: what `plan` looks at beside the tokens: of {"input", "keys", "queries", "class_query", "class_token"}.
            "class_query" is the query of the first token, and "class_token" says that this has to be a class token.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def for_block(self, block: int, depth: int) -> Self:
        """The method as the block with this index of so many is given it."""
        return self

    @abstractmethod
    def plan(self, tokens: Tokens, r: int | None) -> MergePlan:
        """Which tokens become which in one merge step, where `r` are removed from every sample; None: it decides."""


@dataclass
class GridMethod(Method, ABC):
    """A method for U-Nets, where a merge step comes before self-attention and is undone after it."""

    @abstractmethod
    def match(self, x_BNC: Tensor, grid: tuple[int, int]) -> Match:
        """Which target each source of a grid of tokens is nearest to.

        Args:
            x_BNC: the tokens that enter self-attention, row by row.
            grid: rows and columns.
        """


def check_method(method: object) -> None:
    """Raise MameLabError for what is no merge method, a class of methods among it."""
    if not isinstance(method, Method):
        raise MameLabError(
            f"{shorten(repr(method), 80)} is no merge method: give r by name, as in apply(model, r=8), or one such "
            f"as mame_lab.Ward(r=8)"
        )


def sequence_method(method: Method, model: str, class_token: bool) -> SequenceMethod:
    """The method, for a vision transformer of this name; MameLabError where it does not fit.

    `class_token` says whether the model's first token is one.
    """
    if not isinstance(method, SequenceMethod):
        raise MameLabError(
            f"mame={method.method} merges in U-Nets only: choose another for a vision transformer, such as tome"
        )
    if method.grid != Grid():
        raise MameLabError(f"mame.grid={method.grid} is for U-Nets: leave it out for a vision transformer")
    if "class_token" in method.needs and not class_token:
        raise MameLabError(
            f"mame={method.method} goes by the attention of a class token, which this {model} has not: choose another"
        )
    return method
