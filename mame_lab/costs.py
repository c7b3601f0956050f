"""The multiply-adds of a model as a function of its tokens.

B batch, D depth, N images, S of them whose operations are counted, K blocks, F terms of a polynomial.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mame_lab import speed
from mame_lab.merging.bipartite import Adaptive
from mame_lab.models import family_of, unmerged_twin

GIGA = 1e9
# Images whose operations `adaptive_gflops` counts, and images in a batch in which it follows tokens.
COUNTED, TRACED = 8, 16


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


def adaptive_gflops(model: nn.Module, images: Tensor) -> float:
    """`speed.gflops` of a whole model in which images keep different numbers of tokens, without running each alone.

    What a block costs is a polynomial of degree 2 in the tokens that enter it and those that stay, the same in all
    blocks that merge and in all that do not; what comes after the last one is linear in its tokens. They are fitted to
    the operations of a few images, from the one that keeps fewest tokens to the one that keeps most. (Rounding, where
    half of an odd number of tokens are sources, makes it an approximation.)
    """
    family, schedule = family_of(model), vars(model)["schedule"]
    first = int(family.trace(unmerged_twin(model), images[:1])[0])
    with torch.no_grad():
        stay_DN = np.concatenate([torch.stack(family.trace(model, x)).cpu().numpy() for x in images.split(TRACED)], 1)
    stay_DN = stay_DN / first
    enter_DN = np.concatenate([np.ones_like(stay_DN[:1]), stay_DN[:-1]])

    ranks_S = np.linspace(0, len(images) - 1, min(COUNTED, len(images))).round().astype(int)
    counted_S = stay_DN.sum(0).argsort()[ranks_S]
    counts_S = [speed.gflops(model, images[index : index + 1]) for index in counted_S.tolist()]
    of_block_DS = np.array([[counts[name] for counts in counts_S] for name in family.block_names(model)])
    rest_S = np.array([counts[""] for counts in counts_S]) - of_block_DS.sum(0)

    last_1N = stay_DN[-1:]
    total_N = _fitted(np.stack([last_1N**0, last_1N], 2), counted_S, rest_S[None])[0]
    powers = [enter_DN**i * stay_DN**j for i in range(3) for j in range(3 - i)]
    merges_D = np.array([amount != 0 for amount in schedule.amounts])
    for blocks_D in (merges_D, ~merges_D):
        total_N += _fitted(np.stack(powers, 2)[blocks_D], counted_S, of_block_DS[blocks_D]).sum(0)
    return float(total_N.mean())


def _fitted(terms_KNF: np.ndarray, counted_S: np.ndarray, value_KS: np.ndarray) -> np.ndarray:
    """value_KN: the combination of terms that fits the counted images best, of all images."""
    counted = terms_KNF[:, counted_S].reshape(-1, terms_KNF.shape[2])
    return terms_KNF @ np.linalg.lstsq(counted, value_KS.ravel())[0]
