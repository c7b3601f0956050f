"""Tokens for the tests of merging."""

import torch

from mame_lab.merging import Method
from mame_lab.merging.attention import Attention
from mame_lab.merging.state import MergeState
from mame_lab.merging.tokens import Tokens


def rand(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def plain(x: torch.Tensor, prefix: int = 0, valid: torch.Tensor | None = None) -> Tokens:
    """Tokens of size 1 that are their own inputs and keys."""
    return Tokens(x, x, torch.ones(*x.shape[:2], 1, dtype=x.dtype), prefix, valid, x)


def advance(state: MergeState, method: Method, x: torch.Tensor, leave: int | None) -> tuple[torch.Tensor, MergeState]:
    """One step of a state on tokens that are their own inputs and the keys of one head."""
    attention = Attention()
    attention.keys.append(state.packing.pack(x)[:, None] if state.packing else x[:, None])
    return state.merge(method, x, x, attention, leave)


def copies(prefix: int, kinds: int, patches: int, batch: int = 2) -> torch.Tensor:
    """Tokens of few kinds with uneven multiplicity; the first of each kind stands on a target's place."""
    generator = torch.Generator().manual_seed(prefix + kinds)
    kind_BN = torch.randint(kinds, (batch, patches), generator=generator)
    kind_BN[:, 0 : 2 * kinds : 2] = torch.arange(kinds)
    table = torch.randn(prefix + kinds, 6, generator=generator, dtype=torch.float64)
    prefix_BP = torch.arange(prefix).expand(batch, prefix) + kinds
    return table[torch.cat([prefix_BP, kind_BN], 1)]
