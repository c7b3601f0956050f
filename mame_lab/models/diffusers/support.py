"""Which parts of a diffusion pipeline can be merged: the self-attention of its U-Net, by exact types."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from mame_lab.models.diffusers.unet import MergingAttention, MergingTransformer2D, UnmergedAttention
from mame_lab.models.parts import check_forwards, name_of, unsupported

SUPPORTED = (
    "pipelines with diffusers' UNet2DConditionModel (no subclass of it) whose transformers are Transformer2DModel of "
    "BasicTransformerBlock: Stable Diffusion 1, 2 and XL, their image-to-image, inpainting and ControlNet pipelines"
)
_unsupported = partial(unsupported, supported=SUPPORTED)
PLAIN = {MergingTransformer2D: Transformer2DModel, MergingAttention: Attention, UnmergedAttention: Attention}


class Transformer(NamedTuple):
    """One transformer of a U-Net.

    Attributes:
        halvings: how often the sides of the latents are halved before it.
        module: itself.
    """

    halvings: int
    module: Transformer2DModel

    @property
    def attentions(self) -> list[Any]:
        return [block.attn1 for block in self.module.transformer_blocks if not block.only_cross_attention]

    @property
    def cross_attentions(self) -> list[Any]:
        """Those that do not merge."""
        blocks = self.module.transformer_blocks
        others = [block.attn1 for block in blocks if block.only_cross_attention]
        return others + [block.attn2 for block in blocks if block.attn2 is not None]


def unet_of(model: Any) -> UNet2DConditionModel:
    """The U-Net of a pipeline, or the model itself if it is one."""
    unet = getattr(model, "unet", model)
    if type(unet) is not UNet2DConditionModel:
        raise _unsupported(model, "it has no such U-Net" if unet is model else f"its U-Net is a {name_of(unet)}")
    return unet


def transformers_of(unet: UNet2DConditionModel) -> list[Transformer]:
    """The transformers of a U-Net in the order of a pass.

    Raises:
        UnsupportedModelError: a part has another class, or its forward was replaced.
    """
    transformers = [Transformer(halvings, module) for halvings, module in _transformers(unet)]
    for transformer in transformers:
        _check(unet, transformer.module)
    if not any(transformer.attentions for transformer in transformers):
        raise _unsupported(unet, "it has no self-attention")
    return transformers


def resolutions(unet: UNet2DConditionModel) -> list[int]:
    """The halvings at which a U-Net has self-attention, the finest resolution first: the blocks of a schedule."""
    return sorted({transformer.halvings for transformer in transformers_of(unet) if transformer.attentions})


def _transformers(unet: UNet2DConditionModel) -> Iterator[tuple[int, Any]]:
    coarsest = len(unet.down_blocks) - 1
    blocks = [*enumerate(unet.down_blocks), (coarsest, unet.mid_block)]
    blocks += [(coarsest - index, block) for index, block in enumerate(unet.up_blocks)]
    for halvings, block in blocks:
        for transformer in getattr(block, "attentions", None) or ():
            yield halvings, transformer


def _check(unet: UNet2DConditionModel, transformer: Any) -> None:
    if plain(transformer) is not Transformer2DModel or not transformer.is_input_continuous:
        raise _unsupported(unet, f"it has transformers of class {name_of(transformer)}")
    for block in transformer.transformer_blocks:
        _check_class(unet, block, BasicTransformerBlock)
        attentions = [block.attn1, *([] if block.attn2 is None else [block.attn2])]
        for attention in attentions:
            _check_class(unet, attention, Attention)
        check_forwards(unet, [transformer, block, *attentions])


def _check_class(unet: UNet2DConditionModel, part: Any, cls: type) -> None:
    if plain(part) is not cls:
        raise _unsupported(unet, f"it has a {name_of(part)} for a {cls.__name__}")


def plain(part: Any) -> type:
    """The class of a part while it does not merge."""
    return PLAIN.get(type(part), type(part))
