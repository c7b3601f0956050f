"""timm's VisionTransformer made of its plain Block: ViT, DeiT, DeiT-III, MAE, DINOv2, CLIP and SigLIP towers.

B batch, N tokens, K tokens that remain after merging, C channels.
"""

from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from mame_lab.models.base import Architecture
from mame_lab.models.merging_transformer import MergingBlock
from mame_lab.models.parts import stands_in
from mame_lab.models.timm.forward import MergingTimm


@stands_in
class MergingVisionBlock(MergingBlock, Block):
    """timm's Block with one merge step between attention and MLP."""

    def normalized(self, x_BNC: Tensor) -> Tensor:
        return self.norm1(x_BNC)

    def attend(self, x_BNC: Tensor, input_BNC: Tensor, mask_B11N: Tensor | None, positions: None) -> Tensor:
        return x_BNC + self.drop_path1(self.ls1(self.attn(input_BNC, attn_mask=mask_B11N)))

    def transform(self, x_BKC: Tensor) -> Tensor:
        return x_BKC + self.drop_path2(self.ls2(self.mlp(self.norm2(x_BKC))))


@stands_in
class MergingVisionTransformer(MergingTimm, VisionTransformer):
    """timm's VisionTransformer with merging."""

    def embed_images(self, x: Tensor) -> tuple[Tensor, None]:
        return self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x)))), None


VIT = Architecture((VisionTransformer, MergingVisionTransformer), (Block, MergingVisionBlock), (Attention,))
