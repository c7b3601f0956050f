"""Tokens for the tests of merging."""

import torch

from mame_lab.merging import Method
from mame_lab.merging.attention import Attention, Call
from mame_lab.merging.state import MergeState
from mame_lab.merging.tokens import Tokens


def rand(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def plain(x: torch.Tensor, prefix: int = 0, valid: torch.Tensor | None = None) -> Tokens:
    """Tokens of size 1 that are their own inputs, keys and queries, of one head."""
    size_BN1 = torch.ones(*x.shape[:2], 1, dtype=x.dtype)
    return Tokens(x, x, size_BN1, prefix, valid, x[:, None], x[:, None], x.shape[-1] ** -0.5)


def advance(state: MergeState, method: Method, x: torch.Tensor, r: int | None) -> tuple[torch.Tensor, MergeState]:
    """One step of a state on tokens that are their own inputs, and the keys and queries of one head."""
    attention, key_BHND = Attention(), state.packing.pack(x)[:, None] if state.packing else x[:, None]
    attention.calls.append(Call(key_BHND, key_BHND, x.shape[-1] ** -0.5))
    return state.merge(method, x, x, attention, r)


def copies(prefix: int, kinds: int, patches: int, batch: int = 2) -> torch.Tensor:
    """Tokens of few kinds with uneven multiplicity; the first of each kind stands on a target's place."""
    generator = torch.Generator().manual_seed(prefix + kinds)
    kind_BN = torch.randint(kinds, (batch, patches), generator=generator)
    kind_BN[:, 0 : 2 * kinds : 2] = torch.arange(kinds)
    table = torch.randn(prefix + kinds, 6, generator=generator, dtype=torch.float64)
    prefix_BP = torch.arange(prefix).expand(batch, prefix) + kinds
    return table[torch.cat([prefix_BP, kind_BN], 1)]
