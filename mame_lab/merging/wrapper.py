"""A method around another one."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from mame_lab.merging.method import SequenceMethod

if TYPE_CHECKING:
    from mame_lab.merging.plan import MergePlan
    from mame_lab.merging.schedule import Schedule
    from mame_lab.merging.tokens import Tokens


Base = TypeVar("Base", bound=SequenceMethod)


class MethodWrapper(SequenceMethod, Generic[Base]):
    """Merges as `base` does; a subclass watches its steps, or changes them.

    Attributes:
        base: the method, in a block as that block is given it.
    """

    base: Base

    def __init__(self, base: Base) -> None:
        vars(self).update(vars(base), base=base, needs=base.needs)

    def schedule_for(self, depth: int) -> Schedule:
        return self.base.schedule_for(depth)

    def for_block(self, block: int, depth: int) -> Self:
        wrapper = copy(self)
        wrapper.base = self.base.for_block(block, depth)
        return wrapper

    def plan(self, tokens: Tokens, r: int | None) -> MergePlan:
        return self.base.plan(tokens, r)
