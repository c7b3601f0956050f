"""transformers' DINOv2, with and without registers.

B batch, N tokens, K tokens that remain after merging, C channels.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.models.dinov2.modeling_dinov2 import (
    Dinov2Attention,
    Dinov2Backbone,
    Dinov2ForImageClassification,
    Dinov2Layer,
    Dinov2Model,
)
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersAttention,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersLayer,
    Dinov2WithRegistersModel,
)
from transformers.utils.generic import can_return_tuple

from mame_lab.merging.state import MergeState
from mame_lab.models.merging_transformer import MergingBlock
from mame_lab.models.parts import stands_in
from mame_lab.models.transformers.architecture import IMAGENET, Architecture
from mame_lab.models.transformers.forward import MergingBackbone, MergingClassifier, chosen_states, grid_of, refuse


class MergingDinoLayer(MergingBlock):
    """The layer of a DINO with one merge step between attention and MLP."""

    def normalized(self, x_BNC: Tensor) -> Tensor:
        return self.norm1(x_BNC)

    def attend(self, x_BNC: Tensor, input_BNC: Tensor, mask_B11N: Tensor | None, positions: Any) -> Tensor:
        rotary = {} if positions is None else {"position_embeddings": positions}
        y_BNC, _ = self.attention(input_BNC, mask_B11N, **rotary)
        return x_BNC + self.drop_path(self.layer_scale1(y_BNC))

    def transform(self, x_BKC: Tensor) -> Tensor:
        return x_BKC + self.drop_path(self.layer_scale2(self.mlp(self.norm2(x_BKC))))


class MergingDino(MergingBackbone):
    """The backbone of a DINO with merging."""

    def embed_pixels(self, pixel_values: Tensor, **options: Any) -> Tensor:
        refuse(options)
        return self.embeddings(pixel_values)

    def output(self, x_BNC: Tensor, **others: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(x_BNC, x_BNC[:, 0], **others)


class _Classifier(MergingClassifier):
    def feature(self, x_BKC: Tensor, state: MergeState) -> Tensor:
        return torch.cat([x_BKC[:, 0], state.mean(x_BKC, state.prefix)], 1)


@stands_in
class MergingDinov2Layer(MergingDinoLayer, Dinov2Layer):
    """transformers' Dinov2Layer with one merge step between attention and MLP."""


@stands_in
class MergingDinov2Model(MergingDino, Dinov2Model):
    """transformers' Dinov2Model with merging."""


@stands_in
class MergingDinov2Backbone(MergingDino, Dinov2Backbone):
    """transformers' Dinov2Backbone with merging: feature maps are restored (MaRe), as hidden states are."""

    @can_return_tuple
    def restored(self, pixel_values: Tensor, **options: Any) -> BackboneOutput:
        asked = options.pop("output_hidden_states", self.config.output_hidden_states)
        _, _, states = self.encode_all(pixel_values, True, output_hidden_states=True, **options)
        assert states is not None
        named = zip(self.stage_names, states, strict=True)
        maps = tuple(self._feature_map(x_BNC, pixel_values) for name, x_BNC in named if name in self.out_features)
        chosen = chosen_states(asked, len(states))
        shown = tuple(x_BNC if index in chosen else None for index, x_BNC in enumerate(states))
        return BackboneOutput(maps, shown if asked else None)  # pyright: ignore[reportArgumentType]

    def _feature_map(self, x_BNC: Any, pixel_values: Tensor) -> Tensor:
        if self.config.apply_layernorm:
            x_BNC = self.layernorm(x_BNC)
        if not self.config.reshape_hidden_states:
            return x_BNC
        return x_BNC[:, 1:].mT.unflatten(2, grid_of(self.config, pixel_values)).contiguous()


@stands_in
class MergingDinov2ForImageClassification(_Classifier, Dinov2ForImageClassification):
    """transformers' Dinov2ForImageClassification with merging: class token and mean of the patches are classified."""


@stands_in
class MergingDinov2WithRegistersLayer(MergingDinoLayer, Dinov2WithRegistersLayer):
    """transformers' Dinov2WithRegistersLayer with one merge step between attention and MLP."""


@stands_in
class MergingDinov2WithRegistersModel(MergingDino, Dinov2WithRegistersModel):
    """transformers' Dinov2WithRegistersModel with merging."""


@stands_in
class MergingDinov2WithRegistersForImageClassification(_Classifier, Dinov2WithRegistersForImageClassification):
    """transformers' Dinov2WithRegistersForImageClassification with merging; registers are not classified."""


LOADING = {
    "preprocessing": IMAGENET | {"interpolation": "bicubic", "crop_pct": 224 / 256, "crop_mode": "center"},
    "width": 2,
    "any_size": True,
}
DINOV2 = Architecture(
    classifier=(Dinov2ForImageClassification, MergingDinov2ForImageClassification),
    transformer=(Dinov2Model, MergingDinov2Model),
    block=(Dinov2Layer, MergingDinov2Layer),
    attentions=(Dinov2Attention,),
    **LOADING,
)
DINOV2_BACKBONE = Architecture(
    transformer=(Dinov2Backbone, MergingDinov2Backbone),
    block=(Dinov2Layer, MergingDinov2Layer),
    attentions=(Dinov2Attention,),
)
DINOV2_WITH_REGISTERS = Architecture(
    classifier=(Dinov2WithRegistersForImageClassification, MergingDinov2WithRegistersForImageClassification),
    transformer=(Dinov2WithRegistersModel, MergingDinov2WithRegistersModel),
    block=(Dinov2WithRegistersLayer, MergingDinov2WithRegistersLayer),
    attentions=(Dinov2WithRegistersAttention,),
    **LOADING,
)
