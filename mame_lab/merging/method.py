"""What every merge method shares: the settings that say where and how much, and the contract of one merge step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeGuard

from mame_lab.errors import MameLabError
from mame_lab.merging.schedule import Schedule, make_schedule

if TYPE_CHECKING:
    from torch import Tensor

    from mame_lab.merging.plan import MergePlan


@dataclass
class Method(ABC):
    """A way to merge tokens; the `mame` group of the configuration.

    Args:
        method: the name of the method, the key of `merging.METHODS`.
        r: tokens that leave in every merging block: an int, a fraction in (0, 1) of the patch tokens present there
            (rounded down), or a list with one entry for each block of the model.
        blocks: where to merge: the first n blocks or a list of indices. None: the first two thirds, rounded down.
        prop_attn: add the log of a token's size to its attention logits. Models trained without a supervised
            objective (MAE) are reported to do better without it.
        clamp: let a block that has fewer sources than `r` lose all it has, instead of raising an error.
    """

    method: str = "???"
    r: Any = None
    blocks: Any = None
    prop_attn: bool = True
    clamp: bool = False

    def __post_init__(self) -> None:
        for amount in self.r if isinstance(self.r, list) else [self.r]:
            whole, fraction = _is_int(amount) and amount >= 0, isinstance(amount, float) and 0 < amount < 1
            if self.r is not None and not whole and not fraction:
                raise MameLabError(
                    f"mame.r={self.r!r} is not valid: give a number of tokens (0 or more), a fraction between 0 and 1, "
                    f"or a list of these with one entry for each block"
                )
        indices = self.blocks if isinstance(self.blocks, list) else [self.blocks]
        if self.blocks is not None and not all(map(_is_int, indices)):
            raise MameLabError(f"mame.blocks={self.blocks!r} is not valid: give a number or a list of indices")
        if _is_int(self.blocks) and self.blocks < 0:
            raise MameLabError(f"mame.blocks={self.blocks} is negative: give the number of blocks that merge")

    @property
    def depends_on_batch(self) -> bool:
        """Whether the tokens of a sample depend on the other samples of its batch."""
        return False

    def schedule(self, depth: int) -> Schedule:
        """The tokens that leave in each of `depth` blocks."""
        return make_schedule(self.r, self.blocks, depth, self.clamp)

    def __str__(self) -> str:
        told = {entry.name: getattr(self, entry.name) for entry in fields(self)[1:]}
        return f"{self.method}({', '.join(f'{key}={value}' for key, value in told.items() if value is not None)})"

    @abstractmethod
    def plan(self, x_BNC: Tensor, valid_BN: Tensor | None, prefix: int, leave: int | None) -> MergePlan:
        """Which tokens become which, in one merge step.

        Args:
            x_BNC: tokens between attention and MLP, the prefix tokens first.
            valid_BN: False where a token is padding; None: no padding.
            prefix: number of tokens at the front that never merge (class, register).
            leave: tokens that leave in every sample; None: the method decides.
        """


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
