"""transformers' CLIP image tower.

B batch, N tokens, K tokens that remain after merging, C channels.
"""

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import (
    CLIPAttention,
    CLIPEncoderLayer,
    CLIPForImageClassification,
    CLIPVisionModel,
)

from mame_lab.merging.state import MergeState
from mame_lab.models.parts import stands_in
from mame_lab.models.transformers.architecture import Architecture
from mame_lab.models.transformers.forward import MergingBackbone, MergingClassifier, refuse
from mame_lab.models.transformers.siglip import MergingTowerLayer


@stands_in
class MergingCLIPEncoderLayer(MergingTowerLayer, CLIPEncoderLayer):
    """transformers' CLIPEncoderLayer with merging."""


@stands_in
class MergingCLIPVisionModel(MergingBackbone, CLIPVisionModel):
    """transformers' CLIPVisionModel with merging. Its last norm is for the pooled class token alone."""

    blocks_at = "encoder.layers"
    pooling = "post_layernorm"

    def embed_pixels(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **options: Any) -> Tensor:
        refuse(options)
        return self.pre_layrnorm(self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding))

    def final_norm(self, x_BNC: Tensor) -> Tensor:
        return x_BNC

    def output(self, x_BNC: Tensor, **others: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(x_BNC, self.post_layernorm(x_BNC[:, 0]), **others)


@stands_in
class MergingCLIPForImageClassification(MergingClassifier, CLIPForImageClassification):
    """transformers' CLIPForImageClassification with merging: the mean of the patches is classified."""

    def feature(self, x_BKC: Tensor, state: MergeState) -> Tensor:
        return state.mean(x_BKC, state.prefix)


CLIP = Architecture(
    classifier=(CLIPForImageClassification, MergingCLIPForImageClassification),
    transformer=(CLIPVisionModel, MergingCLIPVisionModel),
    block=(CLIPEncoderLayer, MergingCLIPEncoderLayer),
    attentions=(CLIPAttention,),
    preprocessing={
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
    },
    untrained=("vision_model.post_layernorm.",),
    ignored_tensors=(
        "text_model.",
        "logit_",
        "visual_projection.",
        "text_projection.",
        "vision_model.embeddings.position_ids",
    ),
)
