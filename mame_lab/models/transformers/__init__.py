"""Vision transformers of Hugging Face transformers: ViT, DINOv2, DINOv3, VideoMAE, image towers of SigLIP and CLIP."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mame_lab.models.base import Architecture
from mame_lab.models.transformers import support
from mame_lab.models.transformers.forward import check_attention, grid_of, has_class_token, prefix_of
from mame_lab.models.transformers.loading import Loading
from mame_lab.models.transformers.preprocessing import sides


class Transformers(Loading):
    """See `Family`. The model is a classifier or a backbone."""

    name = "transformers"

    def architecture(self, model: nn.Module) -> Architecture:
        return support.architecture_of(model)

    def check(self, model: nn.Module) -> None:
        support.check(model)
        check_attention(support.backbone_of(model))

    def transformer(self, model: nn.Module) -> nn.Module:
        return support.backbone_of(model)

    def untrained(self, model: nn.Module) -> tuple[str, ...]:
        return support.architecture_of(model).untrained

    def classifier(self, model: Any) -> nn.Module:
        return model.classifier

    def fused_attention(self, model: nn.Module) -> bool:
        return support.backbone_of(model).config._attn_implementation == "sdpa"

    def has_class_token(self, model: nn.Module) -> bool:
        return has_class_token(support.backbone_of(model))

    def prefix(self, model: nn.Module) -> int:
        return prefix_of(support.backbone_of(model))

    def patches(self, model: nn.Module) -> int:
        config = support.backbone_of(model).config
        frames = [config.num_frames] if hasattr(config, "num_frames") else []
        return math.prod(self.grid(model, torch.empty(1, *frames, 3, *sides(config.image_size), device="meta")))

    def grid(self, model: nn.Module, x: Tensor) -> tuple[int, ...]:
        return grid_of(support.backbone_of(model).config, x)


FAMILY = Transformers()
