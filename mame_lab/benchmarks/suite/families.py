"""The models that the suite times, with random weights, which cost what trained ones do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Subject(NamedTuple):
    """A model to time.

    Attributes:
        name: as the field calls it.
        build: makes it.
        shape: of one input.
        patches: its patch tokens.
        depth: its blocks.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    patches: int
    depth: int

    @property
    def r(self) -> int:
        """Tokens that are removed in every block: four fifths in all."""
        return int(0.8 * self.patches / self.depth)

    def inputs(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Noise of uneven coarseness, so that thresholds remove uneven numbers of tokens."""
        generator, size = torch.Generator().manual_seed(0), self.shape[-1]
        images = []
        for index in range(batch):
            cells = min(4 * 2 ** (index % 4), size)
            noise = torch.randn(*self.shape[:-2], cells, cells, generator=generator)
            images.append(F.interpolate(noise.view(1, -1, cells, cells), size, mode="bilinear").view(self.shape))
        return torch.stack(images).to(device, dtype)


def of_timm(name: str, model: str, size: int, patch: int, depth: int, /, **options: Any) -> Subject:
    def build() -> nn.Module:
        import timm

        return timm.create_model(model, pretrained=False, **options)

    return Subject(name, build, (3, size, size), (size // patch) ** 2, depth)


def of_videomae(name: str, size: int, channels: int, depth: int, heads: int) -> Subject:
    def build() -> nn.Module:
        from transformers import VideoMAEConfig, VideoMAEForVideoClassification

        settings = {"hidden_size": channels, "num_hidden_layers": depth, "num_attention_heads": heads}
        config = VideoMAEConfig(image_size=size, intermediate_size=4 * channels, num_labels=400, **settings)
        return VideoMAEForVideoClassification(config)

    return Subject(name, build, (16, 3, size, size), 8 * (size // 16) ** 2, depth)


def unet(channels: tuple[int, ...], heads: tuple[int, ...], text: int) -> nn.Module:
    """The U-Net of Stable Diffusion 2.1, or one like it."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        attention_head_dim=cast(Any, heads),
        cross_attention_dim=text,
        use_linear_projection=True,
    )


VIT_B = of_timm("ViT-B/16 224", "vit_base_patch16_224", 224, 16, 12)
VIT_L = of_timm("ViT-L/16 384", "vit_large_patch16_384", 384, 16, 24)
SIGLIP = of_timm("SigLIP2-B/16 512", "vit_base_patch16_siglip_512", 512, 16, 12)
DINOV2 = of_timm("DINOv2-B/14 518", "vit_base_patch14_dinov2", 518, 14, 12)
VIDEOMAE = of_videomae("VideoMAE-L", 224, 1024, 24, 16)

VIT_TI = of_timm("ViT-Ti/16 224", "vit_tiny_patch16_224", 224, 16, 12)
VIT_TI_384 = of_timm("ViT-Ti/16 384", "vit_tiny_patch16_384", 384, 16, 12)
DINOV2_S = of_timm("DINOv2-S/14 224", "vit_small_patch14_dinov2", 224, 14, 12, img_size=224)
VIDEOMAE_TI = of_videomae("VideoMAE-Ti 112", 112, 192, 12, 3)
