"""transformers' DINOv3 ViT, whose rotary position embedding travels with the tokens.

B batch, N tokens, C channels.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTAttention, DINOv3ViTLayer, DINOv3ViTModel

from mame_lab.merging.state import MergeState
from mame_lab.models.parts import stands_in
from mame_lab.models.rotary import rotary_rows
from mame_lab.models.transformers.architecture import Architecture
from mame_lab.models.transformers.dinov2 import MergingDino, MergingDinoLayer


@stands_in
class MergingDINOv3ViTLayer(MergingDinoLayer, DINOv3ViTLayer):
    """transformers' DINOv3ViTLayer with one merge step between attention and MLP."""


@stands_in
class MergingDINOv3ViTModel(MergingDino, DINOv3ViTModel):
    """transformers' DINOv3ViTModel with merging."""

    blocks_at = "model.layer"

    def embed(self, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        x_BNC, _ = super().embed(x, **options)
        cos, sin = self.rope_embeddings(x.to(x_BNC.dtype))
        return x_BNC, torch.cat([sin, cos], -1)

    def positions_of(self, index: int, state: MergeState, positions: Tensor) -> tuple[Tensor, Tensor]:
        sin, cos = rotary_rows(positions, state).chunk(2, -1)
        return cos, sin

    def final_norm(self, x_BNC: Tensor) -> Tensor:
        return self.norm(x_BNC)


DINOV3 = Architecture(
    transformer=(DINOv3ViTModel, MergingDINOv3ViTModel),
    block=(DINOv3ViTLayer, MergingDINOv3ViTLayer),
    attentions=(DINOv3ViTAttention,),
)
