"""PiToMe as its authors run it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from mame_lab.merging.pitome import PiToMe

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class PiToMeCode(PiToMe):
    """PiToMe with what its authors' code for image classifiers does otherwise than the paper (arXiv 2405.16148).

    Two tokens add elu(cosine - margin) to the energy of each other. In the first half of the blocks (rounded up) all
    patch tokens are divided into A and B, in the order of energy, and the r of A merge that are nearest to one of B.
    """

    method: str = "pitome_code"

    early: ClassVar[bool] = True

    def of_block(self, block: int, depth: int) -> Self:
        method = super().of_block(block, depth)
        vars(method)["early"] = 2 * block < depth
        return method

    def likeness(self, similarity_BPP: Tensor) -> Tensor:
        from torch.nn.functional import elu

        return elu(similarity_BPP - self.margin)

    def candidates(self, patches: int, leave: int) -> int:
        return patches if self.early else super().candidates(patches, leave)
