"""timm's Eva made of its EvaBlock: EVA and EVA-02, DINOv3, Perception Encoder, ViTs with rotary position embedding.

B batch, N tokens, K tokens that remain after merging, H heads (1: one embedding for all), C channels, E channels of the
rotary embedding of a head.
"""

import torch
from timm.layers.attention import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor
from torch.nn import functional as F

from mame_lab.merging.method import SequenceMethod
from mame_lab.merging.state import MergeState
from mame_lab.models.parts import stands_in
from mame_lab.models.timm.forward import Architecture, MergingTransformer
from mame_lab.models.tracing import Unscripted


@stands_in
class MergingEvaBlock(Unscripted, EvaBlock):
    """timm's EvaBlock with one merge step between attention and MLP."""

    def forward(
        self, x_BNC: Tensor, state: MergeState, method: SequenceMethod, r: int | None, rope: Tensor | None
    ) -> tuple[Tensor, MergeState]:
        input_BNC = self.norm1(x_BNC)
        with state.attention(bool(method.needs)) as attention:
            y_BNC = self.attn(input_BNC, rope=rope, attn_mask=state.mask_B11N)
        x_BNC = x_BNC + self.drop_path1(_scaled(y_BNC, self.gamma_1))
        x_BKC, state = state.merge(method, x_BNC, input_BNC, attention, r)
        return x_BKC + self.drop_path2(_scaled(self.mlp(self.norm2(x_BKC)), self.gamma_2)), state


@stands_in
class MergingEva(MergingTransformer, Eva):
    """timm's Eva with merging; parameters and their names are the same. A token keeps the rotary embedding it had."""

    @property
    def pool_include_prefix(self) -> bool:
        """timm's Eva gives its attention pooling all tokens."""
        return self.attn_pool is not None

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x_BNC, rope = self._pos_embed(self.patch_embed(x))
        return self.norm_pre(x_BNC), rope

    def positions(self) -> Tensor | None:
        if self.rope is None:
            return None
        fixed = hasattr(self.rope, "feat_shape") and not self.dynamic_img_size
        return self.rope.get_embed(None if fixed else self.patch_embed.grid_size)

    def block_inputs(self, index: int, state: MergeState, embedding: Tensor | None) -> tuple[Tensor | None]:
        rope = embedding[index] if embedding is not None and self.rope_mixed else embedding
        if rope is None or state.origin_BN is None:
            return (rope,)
        places_BK = state.origin_BN if state.packing is None else state.packing.pack(state.origin_BN)
        return (rotary_rows(rope, places_BK, self.num_prefix_tokens),)


def rotary_rows(rope: Tensor, places_BK: Tensor, prefix: int) -> Tensor:
    """The rotary embedding of each token at its place in the full sequence; one that turns nothing for prefix tokens.

    Args:
        rope: that of the patch tokens: (N, E), (H, N, E), or (B, H, N, E) where patch dropout chose them by sample.
        places_BK: places in the full sequence, prefix included.
        prefix: prefix tokens of a sample.

    Returns:
        (B, H, K - prefix, E), for all but the first `prefix` tokens, as timm's attention expects it. Where samples are
        packed into one sequence, those after them include the prefix tokens of the later samples.
    """
    rope_BHNE = rope.view(*(1,) * (4 - rope.ndim), *rope.shape)
    sin, cos = rope_BHNE.chunk(2, -1)
    in_front = (0, 0, prefix, 0)
    table_BNHE = torch.cat([F.pad(sin, in_front), F.pad(cos, in_front, value=1)], -1).transpose(1, 2)
    batch, tokens, heads, _ = table_BNHE.shape
    places_BK = places_BK + tokens * torch.arange(batch, device=places_BK.device)[:, None]
    rows_BKE = F.embedding(places_BK, table_BNHE.flatten(0, 1).flatten(1))
    return rows_BKE.unflatten(2, (heads, -1)).transpose(1, 2)[:, :, prefix:]


def _scaled(x_BNC: Tensor, gamma_C: Tensor | None) -> Tensor:
    return x_BNC if gamma_C is None else gamma_C * x_BNC


EVA = Architecture(Eva, MergingEva, EvaBlock, MergingEvaBlock, (EvaAttention, AttentionRope))
