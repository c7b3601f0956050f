"""transformers' VideoMAE, whose tokens are tubelets: patches of a few frames.

B batch, N tokens, K tokens that remain after merging, C channels.
"""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.videomae.modeling_videomae import (
    VideoMAEAttention,
    VideoMAEForVideoClassification,
    VideoMAELayer,
    VideoMAEModel,
    VideoMAESelfAttention,
)

from mame_lab.merging.state import MergeState
from mame_lab.models.merging_transformer import MergingBlock
from mame_lab.models.parts import stands_in
from mame_lab.models.transformers.architecture import IMAGENET, Architecture
from mame_lab.models.transformers.forward import MergingBackbone, MergingClassifier, refuse


@stands_in
class MergingVideoMAELayer(MergingBlock, VideoMAELayer):
    """transformers' VideoMAELayer with one merge step between attention and MLP."""

    takes_mask = False

    def normalized(self, x_BNC: Tensor) -> Tensor:
        return self.layernorm_before(x_BNC)

    def attend(self, x_BNC: Tensor, input_BNC: Tensor, mask_B11N: Tensor | None, positions: None) -> Tensor:
        return x_BNC + self.attention(input_BNC)

    def transform(self, x_BKC: Tensor) -> Tensor:
        return self.output(self.intermediate(self.layernorm_after(x_BKC)), x_BKC)


@stands_in
class MergingVideoMAEModel(MergingBackbone, VideoMAEModel):
    """transformers' VideoMAEModel with merging."""

    def embed_pixels(self, pixel_values: Tensor, **options: Any) -> Tensor:
        refuse(options)
        return self.embeddings(pixel_values, None)

    def output(self, x_BNC: Tensor, **others: Any) -> BaseModelOutput:
        return BaseModelOutput(x_BNC, **others)


@stands_in
class MergingVideoMAEForVideoClassification(MergingClassifier, VideoMAEForVideoClassification):
    """transformers' VideoMAEForVideoClassification with merging: the mean of the tokens is classified."""

    fc_norm: nn.LayerNorm

    def feature(self, x_BKC: Tensor, state: MergeState) -> Tensor:
        return self.fc_norm(state.mean(x_BKC, 0))


VIDEOMAE = Architecture(
    classifier=(VideoMAEForVideoClassification, MergingVideoMAEForVideoClassification),
    transformer=(VideoMAEModel, MergingVideoMAEModel),
    block=(VideoMAELayer, MergingVideoMAELayer),
    attentions=(VideoMAEAttention, VideoMAESelfAttention),
    preprocessing=IMAGENET | {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"},
)
