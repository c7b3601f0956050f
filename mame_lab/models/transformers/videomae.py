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

from mame_lab.merging.method import SequenceMethod
from mame_lab.merging.state import MergeState
from mame_lab.models.parts import stands_in
from mame_lab.models.tracing import Unscripted
from mame_lab.models.transformers.forward import Architecture, MergingBackbone, MergingClassifier, refuse


@stands_in
class MergingVideoMAELayer(Unscripted, VideoMAELayer):
    """transformers' VideoMAELayer with one merge step between attention and MLP. Its attention takes no mask itself."""

    def forward(
        self, x_BNC: Tensor, state: MergeState, method: SequenceMethod, r: int | None
    ) -> tuple[Tensor, MergeState]:
        input_BNC = self.layernorm_before(x_BNC)
        with state.attention(bool(method.needs), state.mask_B11N) as attention:
            x_BNC = x_BNC + self.attention(input_BNC)
        x_BKC, state = state.merge(method, x_BNC, input_BNC, attention, r)
        return self.output(self.intermediate(self.layernorm_after(x_BKC)), x_BKC), state


@stands_in
class MergingVideoMAEModel(MergingBackbone, VideoMAEModel):
    """transformers' VideoMAEModel with merging; parameters and their names are the same."""

    def embed(self, pixel_values: Tensor, **options: Any) -> Tensor:
        refuse(options)
        return self.embeddings(pixel_values, None)

    def output(self, x_BNC: Tensor, **others: Any) -> BaseModelOutput:
        return BaseModelOutput(x_BNC, **others)


@stands_in
class MergingVideoMAEForVideoClassification(MergingClassifier, VideoMAEForVideoClassification):
    """transformers' VideoMAEForVideoClassification with merging: the mean of the tokens is classified."""

    fc_norm: nn.LayerNorm

    def pool(self, x_BKC: Tensor, state: MergeState) -> Tensor:
        return self.fc_norm(state.mean(x_BKC, 0))


VIDEOMAE = Architecture(
    classifier=(VideoMAEForVideoClassification, MergingVideoMAEForVideoClassification),
    backbone=(VideoMAEModel, MergingVideoMAEModel),
    layer=(VideoMAELayer, MergingVideoMAELayer),
    attentions=(VideoMAEAttention, VideoMAESelfAttention),
)
