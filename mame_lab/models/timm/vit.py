"""timm's VisionTransformer made of its plain Block: ViT, DeiT, DeiT-III, MAE, DINOv2, CLIP and SigLIP towers.

B batch, N tokens, K tokens that remain after merging, C channels.
"""

from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from mame_lab.merging.method import SequenceMethod
from mame_lab.merging.state import MergeState
from mame_lab.models.parts import stands_in
from mame_lab.models.timm.forward import Architecture, MergingTransformer
from mame_lab.models.tracing import Unscripted


@stands_in
class MergingBlock(Unscripted, Block):
    """timm's Block with one merge step between attention and MLP."""

    def forward(
        self, x_BNC: Tensor, state: MergeState, method: SequenceMethod, r: int | None
    ) -> tuple[Tensor, MergeState]:
        input_BNC = self.norm1(x_BNC)
        with state.attention(bool(method.needs)) as attention:
            x_BNC = x_BNC + self.drop_path1(self.ls1(self.attn(input_BNC, attn_mask=state.mask_B11N)))
        x_BKC, state = state.merge(method, x_BNC, input_BNC, attention, r)
        return x_BKC + self.drop_path2(self.ls2(self.mlp(self.norm2(x_BKC)))), state


@stands_in
class MergingVisionTransformer(MergingTransformer, VisionTransformer):
    """timm's VisionTransformer with merging; parameters and their names are the same."""

    def embed(self, x: Tensor) -> tuple[Tensor, None]:
        return self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x)))), None


VIT = Architecture(VisionTransformer, MergingVisionTransformer, Block, MergingBlock, (Attention,))
