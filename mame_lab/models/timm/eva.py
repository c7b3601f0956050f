"""timm's Eva made of its EvaBlock: EVA and EVA-02, DINOv3, Perception Encoder, ViTs with rotary position embedding.

B batch, N tokens, K tokens that remain after merging, C channels.
"""

from timm.layers.attention import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor

from mame_lab.merging.state import MergeState
from mame_lab.models.base import Architecture
from mame_lab.models.merging_transformer import MergingBlock
from mame_lab.models.parts import stands_in
from mame_lab.models.rotary import rotary_rows
from mame_lab.models.timm.forward import MergingTimm


@stands_in
class MergingEvaBlock(MergingBlock, EvaBlock):
    """timm's EvaBlock with one merge step between attention and MLP."""

    def normalized(self, x_BNC: Tensor) -> Tensor:
        return self.norm1(x_BNC)

    def attend(self, x_BNC: Tensor, input_BNC: Tensor, mask_B11N: Tensor | None, positions: Tensor | None) -> Tensor:
        y_BNC = self.attn(input_BNC, rope=positions, attn_mask=mask_B11N)
        return x_BNC + self.drop_path1(_scaled(y_BNC, self.gamma_1))

    def transform(self, x_BKC: Tensor) -> Tensor:
        return x_BKC + self.drop_path2(_scaled(self.mlp(self.norm2(x_BKC)), self.gamma_2))


@stands_in
class MergingEva(MergingTimm, Eva):
    """timm's Eva with merging. A token keeps the rotary embedding that it had."""

    @property
    def pool_include_prefix(self) -> bool:
        """timm's Eva gives its attention pooling all tokens."""
        return self.attn_pool is not None

    def embed_images(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x_BNC, rope = self._pos_embed(self.patch_embed(x))
        return self.norm_pre(x_BNC), rope

    def positions(self) -> Tensor | None:
        if self.rope is None:
            return None
        fixed = hasattr(self.rope, "feat_shape") and not self.dynamic_img_size
        return self.rope.get_embed(None if fixed else self.patch_embed.grid_size)

    def positions_of(self, index: int, state: MergeState, positions: Tensor | None) -> Tensor | None:
        rope = positions[index] if positions is not None and self.rope_mixed else positions
        return None if rope is None else rotary_rows(rope, state)


def _scaled(x_BNC: Tensor, gamma_C: Tensor | None) -> Tensor:
    return x_BNC if gamma_C is None else gamma_C * x_BNC


EVA = Architecture((Eva, MergingEva), (EvaBlock, MergingEvaBlock), (EvaAttention, AttentionRope))
