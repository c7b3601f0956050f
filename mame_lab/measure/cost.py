"""The multiply-adds of a model, also where every image keeps as many tokens as it needs.

D depth, N images, S of them whose operations are counted, K blocks, F terms of a polynomial.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from mame_lab.measure import flops
from mame_lab.models import depends_on_batch, family_of, is_adaptive, unmerged_copy

# Images whose operations `adaptive_gflops` counts unless it is said, and images in a batch in which it follows tokens.
COUNTED, TRACED = 8, 16


def gflops(model: nn.Module, images: Tensor, count: int = COUNTED) -> float:
    """`flops.gflops` of the whole model, mean over the images; of one image where all cost the same.

    Where images cost differently, the operations of `count` of them are counted.
    """
    together = depends_on_batch(model)
    if is_adaptive(model) and not together and len(images) > count:
        return adaptive_gflops(model, images, count)
    return flops.gflops(model, images if is_adaptive(model) else images[:1], together)[""]


def adaptive_gflops(model: nn.Module, images: Tensor, count: int) -> float:
    """`flops.gflops` of a whole model in which images keep different numbers of tokens, without running each alone.

    What a block costs is a polynomial of degree 2 in the tokens that enter it and those that stay, the same in all
    blocks that merge and in all that do not; what comes after the last one is linear in its tokens. They are fitted to
    the operations of `count` images, from the one that keeps fewest tokens to the one that keeps most. (Rounding, where
    half of an odd number of tokens are sources, makes it an approximation.)
    """
    family, schedule = family_of(model), vars(model)["schedule"]
    first = int(family.trace(unmerged_copy(model), images[:1])[0])
    with torch.no_grad():
        stay_DN = np.concatenate([torch.stack(family.trace(model, x)).cpu().numpy() for x in images.split(TRACED)], 1)
    stay_DN = stay_DN / first
    enter_DN = np.concatenate([np.ones_like(stay_DN[:1]), stay_DN[:-1]])

    ranks_S = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    counted_S = stay_DN.sum(0).argsort()[ranks_S]
    counts_S = [flops.gflops(model, images[index : index + 1]) for index in counted_S.tolist()]
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
