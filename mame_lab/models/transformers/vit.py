"""transformers' ViT.

B batch, N tokens, K tokens that remain after merging, C channels.
"""

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.vit.modeling_vit import ViTAttention, ViTForImageClassification, ViTLayer, ViTModel

from mame_lab.merging.state import MergeState
from mame_lab.models.merging_transformer import MergingBlock
from mame_lab.models.parts import stands_in
from mame_lab.models.transformers.architecture import HALF, Architecture
from mame_lab.models.transformers.forward import MergingBackbone, MergingClassifier, refuse


@stands_in
class MergingViTLayer(MergingBlock, ViTLayer):
    """transformers' ViTLayer with one merge step between attention and MLP."""

    def normalized(self, x_BNC: Tensor) -> Tensor:
        return self.layernorm_before(x_BNC)

    def attend(self, x_BNC: Tensor, input_BNC: Tensor, mask_B11N: Tensor | None, positions: None) -> Tensor:
        return x_BNC + self.dropout(self.attention(input_BNC, mask_B11N)[0])

    def transform(self, x_BKC: Tensor) -> Tensor:
        return x_BKC + self.dropout(self.mlp(self.layernorm_after(x_BKC)))


@stands_in
class MergingViTModel(MergingBackbone, ViTModel):
    """transformers' ViTModel with merging."""

    blocks_at = "layers"

    def embed_pixels(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None, **options: Any
    ) -> Tensor:
        refuse(options)
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        return self.embeddings(pixel_values, interpolate_pos_encoding=bool(interpolate_pos_encoding))

    def output(self, x_BNC: Tensor, **others: Any) -> BaseModelOutputWithPooling:
        pooled_BC = None if self.pooler is None else self.pooler(x_BNC)
        return BaseModelOutputWithPooling(x_BNC, pooled_BC, **others)


@stands_in
class MergingViTForImageClassification(MergingClassifier, ViTForImageClassification):
    """transformers' ViTForImageClassification with merging: the class token is classified."""

    def feature(self, x_BKC: Tensor, state: MergeState) -> Tensor:
        return x_BKC[:, 0]


VIT = Architecture(
    classifier=(ViTForImageClassification, MergingViTForImageClassification),
    transformer=(ViTModel, MergingViTModel),
    block=(ViTLayer, MergingViTLayer),
    attentions=(ViTAttention,),
    preprocessing=HALF | {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"},
)
