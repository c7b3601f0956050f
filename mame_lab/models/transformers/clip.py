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
from transformers.utils import constants

from mame_lab.merging.state import MergeState
from mame_lab.models.parts import stands_in
from mame_lab.models.transformers.architecture import Architecture
from mame_lab.models.transformers.forward import MergingClassifier
from mame_lab.models.transformers.siglip import MergingTower, MergingTowerLayer


@stands_in
class MergingCLIPEncoderLayer(MergingTowerLayer, CLIPEncoderLayer):
    """transformers' CLIPEncoderLayer with merging."""


@stands_in
class MergingCLIPVisionModel(MergingTower, CLIPVisionModel):
    """transformers' CLIPVisionModel with merging. Its last norm is for the pooled class token alone."""

    pooling = "post_layernorm"

    def embed_pixels(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **options: Any) -> Tensor:
        return self.pre_layrnorm(super().embed_pixels(pixel_values, interpolate_pos_encoding, **options))

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
        "mean": tuple(constants.OPENAI_CLIP_MEAN),
        "std": tuple(constants.OPENAI_CLIP_STD),
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
