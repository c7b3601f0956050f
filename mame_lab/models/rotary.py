"""Rotary position embeddings that travel with their tokens.

B batch, N patch tokens, K tokens that remain after merging, H heads (1: one embedding for all), E channels of the
rotary embedding of a head.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mame_lab.merging.state import MergeState


def rotary_rows(rope: Tensor, state: MergeState) -> Tensor:
    """The rotary embedding of each token at its place in the full sequence; one that turns nothing for prefix tokens.

    Args:
        rope: sines and cosines of the patch tokens: (N, E), (H, N, E), or (B, H, N, E) where they differ by sample.
        state: says where the tokens lie.

    Returns:
        `rope` itself before the first merge, then (B, H, K - prefix, E), for all but the prefix tokens. Where samples
        are packed into one sequence, those after them include the prefix tokens of the later samples.
    """
    if state.origin_BN is None:
        return rope
    places_BK = state.origin_BN if state.packing is None else state.packing.pack(state.origin_BN)
    rope_BHNE = rope.view(*(1,) * (4 - rope.ndim), *rope.shape)
    sin, cos = rope_BHNE.chunk(2, -1)
    in_front = (0, 0, state.prefix, 0)
    table_BNHE = torch.cat([F.pad(sin, in_front), F.pad(cos, in_front, value=1)], -1).transpose(1, 2)
    batch, tokens, heads, _ = table_BNHE.shape
    places_BK = places_BK + tokens * torch.arange(batch, device=places_BK.device)[:, None]
    rows_BKE = F.embedding(places_BK, table_BNHE.flatten(0, 1).flatten(1))
    return rows_BKE.unflatten(2, (heads, -1)).transpose(1, 2)[:, :, state.prefix :]
