"""Which timm models can be merged: those whose forward pass is known, by the exact types of their parts."""

from functools import partial
from typing import Any

from timm.layers.attention_pool import AttentionPoolLatent
from torch import nn

from mame_lab.models.base import Architecture
from mame_lab.models.parts import check_forwards, check_hooks, name_of, unsupported
from mame_lab.models.timm.eva import EVA
from mame_lab.models.timm.forward import POOLS
from mame_lab.models.timm.vit import VIT

ARCHITECTURES = (VIT, EVA)
# Rotary position embeddings that are one tensor of a row for each patch; by name, for older versions of timm lack some.
ROPES = [f"timm.layers.pos_embed_sincos.RotaryEmbedding{kind}" for kind in ("Cat", "Mixed", "DinoV3", "MRope")]
SUPPORTED = (
    "timm's VisionTransformer made of its plain Block and Eva made of its EvaBlock (no subclass of them), with token, "
    "avg, map (attention) or no pooling: ViT and AugReg, DeiT, DeiT-III, MAE, DINOv2, models with registers, CLIP and "
    "SigLIP image towers; EVA, EVA-02, DINOv3, Perception Encoder, ViTs with rotary position embedding"
)
_unsupported = partial(unsupported, supported=SUPPORTED)


def architecture_of(model: nn.Module) -> Architecture:
    """The classes of the model, by its own class; UnsupportedModelError for one that is not known."""
    for architecture in ARCHITECTURES:
        if type(model) in architecture.models:
            return architecture
    raise _unsupported(model, "it has a forward pass of its own")


def check(model: Any) -> None:
    """Raise UnsupportedModelError for a model that would be merged wrongly or not at all."""
    architecture = architecture_of(model)
    for block in model.blocks:
        if type(block) not in architecture.block:
            raise _unsupported(model, f"it has blocks of class {name_of(block)}")
        if type(block.attn) not in architecture.attentions:
            raise _unsupported(model, f"it has attention of class {name_of(block.attn)}")
    rope = getattr(model, "rope", None)
    if rope is not None and name_of(rope) not in ROPES:
        raise _unsupported(model, f"it has rotary position embedding of class {name_of(rope)}")
    pool = model.attn_pool
    if model.global_pool not in POOLS:
        raise _unsupported(model, f"it pools by '{model.global_pool}'")
    if pool is not None and (type(pool) is not AttentionPoolLatent or pool.pos_embed is not None):
        raise _unsupported(model, f"its attention pooling {name_of(pool)} depends on positions or has another class")
    attentions = [block.attn for block in model.blocks]
    check_hooks(model, [model.blocks])
    check_forwards(model, [model, model.blocks, *model.blocks, *attentions, *([] if pool is None else [pool])])
