"""How many tokens are removed in which block."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mame_lab.errors import MameLabError

log = logging.getLogger(__name__)

# A number of tokens, a fraction of the patch tokens present, or None: the method decides from the tokens.
Amount = int | float | None

# The tokens that are removed in each block of DeiT-S at 2.9 GFLOPs, by the rates that DiffRate learned (Chen et al.,
# arXiv 2305.17997).
DIFFRATE = (0, 3, 18, 20, 15, 8, 12, 14, 19, 24, 8, 53)


def _diffrate(place: float) -> float:
    import numpy as np

    removed = np.interp(place * (len(DIFFRATE) - 1), range(len(DIFFRATE)), DIFFRATE)
    return float(removed) * len(DIFFRATE) / sum(DIFFRATE)


# How many times `r` is removed at a place between the first merging block (0) and the last (1).
SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda place: 1,
    "linear": lambda place: 2 - 2 * place,
    "diffrate": _diffrate,
}

# Which blocks of a model of so many merge unless it is said, by the places where a method is published: one at least.
PLACES: dict[str, Callable[[int], list[int]]] = {
    "two thirds": lambda depth: list(range(max(2 * depth // 3, 1))),
    "all": lambda depth: list(range(depth)),
    "all but the first": lambda depth: list(range(min(1, depth - 1), depth)),
    "quarters": lambda depth: sorted({depth * quarter // 4 for quarter in (1, 2, 3)}),
}


@dataclass(frozen=True)
class Schedule:
    """The budget of every block of a model.

    Args:
        amounts: one a block; 0: it does not merge.
        clamp: truncate to the tokens that can be removed instead of raising an error.
        pairs: whether each removed token needs one of its own that is not, so that half of them can be removed;
            otherwise all but one.
    """

    amounts: tuple[Amount, ...]
    clamp: bool = False
    pairs: bool = True

    @property
    def off(self) -> bool:
        """Whether no block merges."""
        return all(amount == 0 for amount in self.amounts)

    def removed(self, block: int, patches: int, sources: int | None = None) -> int | None:
        """The number of tokens that are removed in a block which `patches` patch tokens enter.

        Args:
            block: its index.
            patches: the patch tokens.
            sources: how many of them can be removed. None: as many as `pairs` says, half of them rounded down.

        Raises:
            MameLabError: more are to be removed than can be, and `clamp` is off.
        """
        asked = self._asked(block, patches)
        if sources is None:
            sources = patches // 2 if self.pairs else max(patches - 1, 0)
        if asked is None or asked <= sources:
            return asked
        if self.clamp:
            return sources
        raise MameLabError(
            f"mame.r={self.amounts[block]} is too large for block {block}: {patches} patch tokens enter it, of which "
            f"{sources} are sources, which can be removed; lower mame.r, merge in fewer blocks (mame.blocks) or set "
            f"mame.clamp=true"
        )

    def walk(self, patches: int, warn: bool = False) -> list[int | None]:
        """The tokens removed in each block if `patches` patch tokens enter the first; None where the input decides.

        With `warn`, what results is logged where `clamp` truncated, and where nothing is removed at all.
        """
        removed, truncated = [], False
        for block in range(len(self.amounts)):
            removed.append(self.removed(block, patches))
            truncated |= removed[-1] != self._asked(block, patches)
            patches -= removed[-1] or 0
        if truncated and warn:
            log.warning("mame.r is truncated to %s, for some blocks have fewer tokens that can be removed", removed)
        elif warn and not self.off and all(amount == 0 for amount in removed):
            log.warning(
                "mame.r=%s merges nowhere: of %d patch tokens that is none, rounded down", self.amounts, patches
            )
        return removed

    def _asked(self, block: int, patches: int) -> int | None:
        """The tokens to be removed; a fraction is rounded down as its decimal digits say (0.29 of 100 is 29)."""
        amount = self.amounts[block]
        return math.floor(amount * patches + 1e-9) if isinstance(amount, float) else amount


def indices(blocks: int | list[int], depth: int) -> list[int]:
    """The indices of the first n blocks, or those of a list, in which negative ones count from the end.

    Raises:
        MameLabError: a model of `depth` blocks has not all of them, or one is given twice.
    """
    found = list(range(blocks)) if isinstance(blocks, int) else [i + depth if i < 0 else i for i in blocks]
    if any(not 0 <= i < depth for i in found) or len(set(found)) < len(found):
        raise MameLabError(
            f"mame.blocks={blocks} does not fit the model: it has {depth} blocks, so give a number up to {depth} or a "
            f"list of different indices from {-depth} to {depth - 1}"
        )
    return found


def over_blocks(amounts: Sequence[Amount], blocks: list[int], depth: int) -> tuple[Amount, ...]:
    """The amounts of `depth` blocks: those given, in the order of depth, in the given blocks, 0 in the others."""
    of_block = dict(zip(sorted(blocks), amounts, strict=True))
    return tuple(of_block.get(block, 0) for block in range(depth))


def shaped(r: float, shape: str, blocks: int) -> list[int | float]:
    """`r` tokens, or this fraction of them, on average over the merging blocks, in one of `SHAPES`."""
    amounts = [r * factor for factor in factors(shape, blocks)]
    if isinstance(r, int):
        return [round(amount) for amount in amounts]
    return amounts if shape == "constant" else [min(amount, 0.5) for amount in amounts]


def factors(shape: str, blocks: int) -> list[float]:
    """How many times the average amount is removed in each of the merging blocks."""
    if blocks == 1:
        return [1.0]
    return [SHAPES[shape](block / (blocks - 1)) for block in range(blocks)]


def geometric_blocks(depth: int, share: float) -> list[int]:
    """Where a geometric schedule merges that comes down to a share of the multiply-adds.

    In all blocks but the last twelfth, for what later ones save is little. A light budget spares the first blocks,
    whose merges harm most; a heavy one cannot, for they save most.
    """
    return list(range(round(depth * max(share - 0.55, 0)), depth - round(depth / 12)))
