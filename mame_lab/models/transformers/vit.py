"""transformers' ViT.

B batch, N tokens, K tokens that remain after merging, C channels.
"""

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.vit.modeling_vit import ViTAttention, ViTForImageClassification, ViTLayer, ViTModel

from mame_lab.merging.method import SequenceMethod
from mame_lab.merging.state import MergeState
from mame_lab.models.parts import stands_in
from mame_lab.models.tracing import Unscripted
from mame_lab.models.transformers.forward import Architecture, MergingBackbone, MergingClassifier, refuse


@stands_in
class MergingViTLayer(Unscripted, ViTLayer):
    """transformers' ViTLayer with one merge step between attention and MLP."""

    def forward(
        self, x_BNC: Tensor, state: MergeState, method: SequenceMethod, r: int | None
    ) -> tuple[Tensor, MergeState]:
        input_BNC = self.layernorm_before(x_BNC)
        with state.attention(bool(method.needs)) as attention:
            y_BNC, _ = self.attention(input_BNC, state.mask_B11N)
        x_BKC, state = state.merge(method, x_BNC + self.dropout(y_BNC), input_BNC, attention, r)
        return x_BKC + self.dropout(self.mlp(self.layernorm_after(x_BKC))), state


@stands_in
class MergingViTModel(MergingBackbone, ViTModel):
    """transformers' ViTModel with merging; parameters and their names are the same."""

    def embed(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None, **options: Any) -> Tensor:
        refuse(options)
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        return self.embeddings(pixel_values, interpolate_pos_encoding=bool(interpolate_pos_encoding))

    def output(self, x_BNC: Tensor, **others: Any) -> BaseModelOutputWithPooling:
        pooled_BC = None if self.pooler is None else self.pooler(x_BNC)
        return BaseModelOutputWithPooling(x_BNC, pooled_BC, **others)


@stands_in
class MergingViTForImageClassification(MergingClassifier, ViTForImageClassification):
    """transformers' ViTForImageClassification with merging: the class token is classified."""

    def pool(self, x_BKC: Tensor, state: MergeState) -> Tensor:
        return x_BKC[:, 0]


VIT = Architecture(
    classifier=(ViTForImageClassification, MergingViTForImageClassification),
    backbone=(ViTModel, MergingViTModel),
    layer=(ViTLayer, MergingViTLayer),
    attentions=(ViTAttention,),
)
