"""transformers' SigLIP image tower.

B batch, N tokens, K tokens that remain after merging, C channels.
"""

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.siglip.modeling_siglip import (
    SiglipAttention,
    SiglipEncoderLayer,
    SiglipForImageClassification,
    SiglipVisionModel,
)

from mame_lab.merging.state import MergeState
from mame_lab.models.merging_transformer import MergingBlock
from mame_lab.models.parts import stands_in
from mame_lab.models.transformers.architecture import HALF, Architecture
from mame_lab.models.transformers.forward import MergingBackbone, MergingClassifier, refuse


class MergingTowerLayer(MergingBlock):
    """The layer of an image tower with one merge step between attention and MLP."""

    def normalized(self, x_BNC: Tensor) -> Tensor:
        return self.layer_norm1(x_BNC)

    def attend(self, x_BNC: Tensor, input_BNC: Tensor, mask_B11N: Tensor | None, positions: None) -> Tensor:
        return x_BNC + self.self_attn(input_BNC, mask_B11N)[0]

    def transform(self, x_BKC: Tensor) -> Tensor:
        return x_BKC + self.mlp(self.layer_norm2(x_BKC))


class MergingTower(MergingBackbone):
    """An image tower with merging."""

    blocks_at = "encoder.layers"

    def embed_pixels(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **options: Any) -> Tensor:
        refuse(options)
        return self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)


@stands_in
class MergingSiglipEncoderLayer(MergingTowerLayer, SiglipEncoderLayer):
    """transformers' SiglipEncoderLayer with merging."""


@stands_in
class MergingSiglipVisionModel(MergingTower, SiglipVisionModel):
    """transformers' SiglipVisionModel with merging. Its attention pooling sees the restored tokens."""

    pooling = "head"

    def final_norm(self, x_BNC: Tensor) -> Tensor:
        return self.post_layernorm(x_BNC)

    def output(self, x_BNC: Tensor, **others: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(x_BNC, self.head(x_BNC) if self.use_head else None, **others)


@stands_in
class MergingSiglipForImageClassification(MergingClassifier, SiglipForImageClassification):
    """transformers' SiglipForImageClassification with merging: the mean of the tokens is classified."""

    def feature(self, x_BKC: Tensor, state: MergeState) -> Tensor:
        return state.mean(x_BKC, 0)


SIGLIP = Architecture(
    classifier=(SiglipForImageClassification, MergingSiglipForImageClassification),
    transformer=(SiglipVisionModel, MergingSiglipVisionModel),
    block=(SiglipEncoderLayer, MergingSiglipEncoderLayer),
    attentions=(SiglipAttention,),
    preprocessing=HALF | {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"},
    ignored_tensors=("text_model.", "logit_"),
    untrained=("vision_model.head.",),
)
