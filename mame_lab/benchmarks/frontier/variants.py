"""Methods with one of their choices changed, as arms of the frontier.

Of `ward`, for it was found by them; of published methods, the blocks in which they merge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mame_lab.merging import ATC, EViT, Method, ToMe, Ward
from mame_lab.merging.ward import share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mame_lab.merging.tokens import Tokens


@dataclass
class TokenWard(Ward):
    """By the tokens after attention, without the keys."""

    def compared(self, tokens: Tokens) -> Sequence[Tensor]:
        return super().compared(tokens)[1:]


@dataclass
class KeyWard(Ward):
    """By the keys alone."""

    def compared(self, tokens: Tokens) -> Sequence[Tensor]:
        return super().compared(tokens)[:1]


@dataclass
class AllChannelsWard(Ward):
    """By all keys and all channels of the tokens."""

    def compared(self, tokens: Tokens) -> Sequence[Tensor]:
        return tokens.keys(), tokens.x_BNC


@dataclass
class SizeWard(Ward):
    """A token weighs its size, whatever attends to it: Ward's criterion itself."""

    def repulsion(self, tokens: Tokens) -> Tensor:
        return tokens.size_BN1.new_full((1, 1, 1), share(tokens))


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
    "ward_all_channels": AllChannelsWard,
    "ward_size": SizeWard,
    "tome_two_thirds": ToMeTwoThirds,
    "atc_everywhere": ATCEverywhere,
    "evit_everywhere": EViTEverywhere,
}
