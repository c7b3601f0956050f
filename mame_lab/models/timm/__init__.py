"""Vision transformers of timm: ViT, DeiT, DeiT-III, MAE, DINOv2, CLIP and SigLIP towers, EVA, DINOv3."""

from typing import Any

from torch import Tensor, nn

from mame_lab.models.base import Architecture
from mame_lab.models.timm import support
from mame_lab.models.timm.loading import Loading


class Timm(Loading):
    """See `Family`. The model is one of timm's own, which has its head itself."""

    name = "timm"

    def architecture(self, model: nn.Module) -> Architecture:
        return support.architecture_of(model)

    def check(self, model: nn.Module) -> None:
        support.check(model)

    def match_classes(self, model: Any, classes: int) -> bool:
        fits = model.num_classes == classes
        if not fits:
            model.reset_classifier(classes)
        return not fits

    def classifier(self, model: Any) -> nn.Module:
        return model.get_classifier()

    def fused_attention(self, model: nn.Module) -> bool:
        return any(getattr(module, "fused_attn", False) for module in model.modules())

    def has_class_token(self, model: Any) -> bool:
        return model.cls_token is not None

    def prefix(self, model: Any) -> int:
        return model.num_prefix_tokens

    def patches(self, model: Any) -> int | None:
        return model.patch_embed.num_patches

    def grid(self, model: Any, x: Tensor) -> tuple[int, int]:
        height, width = x.shape[-2:]
        return model.patch_embed.dynamic_feat_size((height, width))


FAMILY = Timm()
