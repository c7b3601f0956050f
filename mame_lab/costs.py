"""The multiply-adds of a model as a differentiable function of the tokens that leave in each block.

B batch, D depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mame_lab import speed
from mame_lab.merging.bipartite import Adaptive
from mame_lab.models import family_of, unmerged_twin

GIGA = 1e9


@dataclass(frozen=True)
class Costs:
    """Where the multiply-adds of a model go, and how they follow from its tokens.

    Merging takes place between attention and MLP. So a block which n tokens enter and in which k stay costs
    `attention` n^2 + `entering` n + `staying` k, and a merge step of p patch tokens of which r leave costs
    `merging` (p^2 / 4), and where a source is spread over all targets another `merging` (r p / 2).

    Attributes:
        attention_D1, entering_D1, staying_D1, merging_D1: of each block, in 1e9 multiply-adds.
        pooling: of attention pooling, for each token that is left at the end.
        rest: of all that does not depend on the tokens: the embedding, the head.
        tokens, prefix: that enter the first block, and those of them that never merge.
        spreads: see `Bipartite`.
    """

    attention_D1: Tensor
    entering_D1: Tensor
    staying_D1: Tensor
    merging_D1: Tensor
    pooling: float
    rest: float
    tokens: int
    prefix: int
    spreads: bool

    def share(self, leaving_DB: Tensor) -> Tensor:
        """The share of the unmerged model's multiply-adds that each sample costs (B,).

        Args:
            leaving_DB: the tokens that leave in each block, which need not be whole.
        """
        unmerged = replace(self, merging_D1=torch.zeros_like(self.merging_D1))
        return self.gflops(leaving_DB) / unmerged.gflops(torch.zeros_like(leaving_DB))

    def gflops(self, leaving_DB: Tensor) -> Tensor:
        """1e9 multiply-adds of each sample (B,); see `speed.gflops`."""
        attention_D1, entering_D1, staying_D1, merging_D1 = (
            of.to(leaving_DB.device) for of in (self.attention_D1, self.entering_D1, self.staying_D1, self.merging_D1)
        )
        stay_DB = self.tokens - leaving_DB.cumsum(0)
        enter_DB = stay_DB + leaving_DB
        patches_DB = enter_DB - self.prefix
        pairs_DB = patches_DB.square() / 4
        if self.spreads:
            pairs_DB = pairs_DB + leaving_DB * patches_DB / 2
        of_block_DB = (
            attention_D1 * enter_DB.square() + entering_D1 * enter_DB + staying_D1 * stay_DB + merging_D1 * pairs_DB
        )
        return of_block_DB.sum(0) + self.pooling * stay_DB[-1] + self.rest


def count(model: nn.Module, method: Adaptive, inputs_1: Tensor) -> Costs:
    """The costs of a model that merges by a method, from one pass of the model unmerged.

    Args:
        model: a supported one.
        method: says in which blocks tokens merge.
        inputs_1: an image, or a video, as the model takes it, in a batch of one.
    """
    family, plain = family_of(model), unmerged_twin(model).eval()
    names = family.block_names(plain)
    seen: list[Tensor] = []
    hook = plain.get_submodule(names[0]).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    counts = speed.gflops_by_operator(plain, inputs_1.to(next(plain.parameters()).device))
    hook.remove()
    _, tokens, channels = seen[0].shape

    def total(name: str, *operators: str) -> float:
        return sum(count for operator, count in counts.get(name, {}).items() if not operators or operator in operators)

    attentions = [_attention_of(plain.get_submodule(name), name) for name in names]
    quadratic_D = [total(name, "bmm", "baddbmm") for name in attentions]
    amounts = method.schedule_for(len(names)).amounts
    columns = {
        "attention_D1": [of / tokens**2 for of in quadratic_D],
        "entering_D1": [(total(name) - of) / tokens for name, of in zip(attentions, quadratic_D, strict=True)],
        "staying_D1": [(total(b) - total(a)) / tokens for b, a in zip(names, attentions, strict=True)],
        "merging_D1": [0 if amount == 0 else channels / GIGA for amount in amounts],
    }
    pooling = total("attn_pool")
    return Costs(
        **{name: torch.tensor(of, dtype=torch.float32)[:, None] for name, of in columns.items()},
        pooling=pooling / tokens,
        rest=total("") - sum(map(total, names)) - pooling,
        tokens=tokens,
        prefix=tokens - math.prod(family.grid(plain, inputs_1)),
        spreads=method.spreads,
    )


def _attention_of(block: Any, name: str) -> str:
    """The name of its attention, which comes before the merge step."""
    return next(f"{name}.{child}" for child, _ in block.named_children() if child in ("attn", "attention"))
