"""Methods with one of their choices changed, as arms of the frontier.

Of `ward`, for it was found by them; of published methods, the blocks in which they merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mame_lab.merging import ATC, EViT, Method, ToMe, Ward

if TYPE_CHECKING:
    from torch import Tensor

    from mame_lab.merging.tokens import Tokens


@dataclass
class TokenWard(Ward):
    """By the tokens after attention, normalised, without the keys."""

    def distance(self, tokens: Tokens) -> Tensor:
        from mame_lab.merging import matching

        return matching.squared_distance(matching.unit(tokens.x_BNC), tokens)


@dataclass
class KeyWard(Ward):
    """By the keys alone."""

    def distance(self, tokens: Tokens) -> Tensor:
        from mame_lab.merging import matching

        return matching.squared_distance(tokens.keys(), tokens)


@dataclass
class RootWard(Ward):
    """A token weighs the square root of its size, whatever attends to it."""

    def weight(self, tokens: Tokens) -> Tensor:
        return tokens.size_BN1.sqrt()


@dataclass
class SizeWard(Ward):
    """A token weighs its size: Ward's criterion itself."""

    def weight(self, tokens: Tokens) -> Tensor:
        return tokens.size_BN1


@dataclass
class ToMeTwoThirds(ToMe):
    """In the first two thirds of the blocks, where all constant budgets but the published ones are."""

    places: ClassVar[str] = "two thirds"


@dataclass
class ATCEverywhere(ATC):
    """In every block, a little in each, which is its strongest form."""

    places: ClassVar[str] = "all"


@dataclass
class EViTEverywhere(EViT):
    """In every block."""

    places: ClassVar[str] = "all"


VARIANTS: dict[str, type[Method]] = {
    "ward_tokens": TokenWard,
    "ward_keys": KeyWard,
    "ward_root": RootWard,
    "ward_size": SizeWard,
    "tome_two_thirds": ToMeTwoThirds,
    "atc_everywhere": ATCEverywhere,
    "evit_everywhere": EViTEverywhere,
}
