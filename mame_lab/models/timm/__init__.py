"""Vision transformers of timm: ViT, DeiT, DeiT-III, MAE, DINOv2, CLIP and SigLIP towers.

B batch, D depth, N patch tokens, C channels.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mame_lab.merging.method import Method, SequenceMethod, sequence_method
from mame_lab.merging.plan import MergePlan
from mame_lab.merging.schedule import Schedule
from mame_lab.merging.ward import Ward
from mame_lab.models import shared_copy
from mame_lab.models.parts import become, check_forwards
from mame_lab.models.timm.forward import MergingTransformer, TimmTransformer
from mame_lab.models.timm.loading import build, data_config, load, load_weights
from mame_lab.models.timm.support import architecture_by_class, architecture_of

__all__ = [
    "attach",
    "block_names",
    "build",
    "classifier",
    "data_config",
    "detach",
    "feature_and_patches",
    "fused_attention",
    "grid",
    "load",
    "load_weights",
    "match_classes",
    "name_classes",
    "plans",
    "splittable_copy",
    "trace",
]


def attach(model: TimmTransformer, method: Method) -> None:
    """Give the model its way through merging, replacing an earlier one; a method that is off leaves plain timm.

    Raises:
        UnsupportedModelError: the model is not exactly one of those that are known; it is left as it was.
        MameLabError: the schedule does not fit the model; it is left as it was.
    """
    architecture = architecture_of(model)
    method = sequence_method(method, architecture.plain.__name__, class_token=model.cls_token is not None)
    schedule = method.schedule_for(len(model.blocks))
    if model.patch_embed.num_patches:
        schedule.walk(model.patch_embed.num_patches, warn=True)
    detach(model)
    if not schedule.off:
        _enter(model, method, schedule)


def _enter(model: TimmTransformer, method: SequenceMethod, schedule: Schedule) -> None:
    architecture = architecture_of(model)
    become(model, architecture.merging)
    methods = [method.for_block(block, len(model.blocks)) for block in range(len(model.blocks))]
    vars(model).update(method=method, methods=methods, schedule=schedule)
    for block in model.blocks:
        become(block, architecture.merging_block)


def detach(model: TimmTransformer) -> None:
    """Give back timm's own classes, whose parameters never changed, whatever else was changed in the model."""
    if isinstance(model, MergingTransformer):
        architecture = architecture_by_class(model)
        blocks = [module for module in model.modules() if type(module) is architecture.merging_block]
        check_forwards(model, [model, *blocks])
        become(model, architecture.plain)
        del model.method, model.methods, model.schedule
        for block in blocks:
            become(block, architecture.block)


def splittable_copy(model: TimmTransformer) -> nn.Module:
    """A copy that shares all parameters and buffers, merges as the model does, and can stop and go on at a stage.

    It has `halfway` and takes what that gives as input; see `mame_lab.models.stages`.
    """
    split_model: Any = shared_copy(model)
    if not isinstance(split_model, MergingTransformer):
        _enter(split_model, Ward(r=0), Schedule((0,) * len(split_model.blocks)))
    return split_model


def classifier(model: TimmTransformer) -> nn.Module:
    """The module that features enter and logits leave; an identity where the model has no head."""
    return model.get_classifier()


def feature_and_patches(model: TimmTransformer, x: Tensor) -> tuple[Tensor, Tensor]:
    """What enters the head (B, C), and the patch tokens (B, N, C) after the final norm on the full grid, in one pass.

    Of a merged model the feature is that of its merged tokens, and the patch tokens are restored (MaRe).
    """
    merging: Any = model if isinstance(model, MergingTransformer) else splittable_copy(model)
    return merging.feature_and_patches(x)


def name_classes(model: TimmTransformer, classes: list[str]) -> None:
    """Tell the model what the classes are called: nothing to a head of numbers."""


def match_classes(model: TimmTransformer, classes: int) -> bool:
    """Give the model a fresh head where it has not the classes of the data. Returns whether it did."""
    fits = model.num_classes == classes
    if not fits:
        model.reset_classifier(classes)
    return not fits


def block_names(model: TimmTransformer) -> list[str]:
    """The names of the blocks, in order."""
    return [f"blocks.{index}" for index in range(len(model.blocks))]


def fused_attention(model: TimmTransformer) -> bool:
    """Whether attention is PyTorch's scaled_dot_product_attention."""
    return any(getattr(module, "fused_attn", False) for module in model.modules())


def plans(model: TimmTransformer, x: Tensor) -> list[MergePlan | None]:
    """The merge step of each block, None where it has none."""
    return model.plans(x) if isinstance(model, MergingTransformer) else [None] * len(model.blocks)


def grid(model: TimmTransformer, x: Tensor) -> tuple[int, int]:
    """Rows and columns of the patch tokens of these images."""
    height, width = x.shape[-2:]
    return model.patch_embed.dynamic_feat_size((height, width))


def trace(model: TimmTransformer, x: Tensor) -> list[Tensor]:
    """Tokens of every sample after each block, prefix counted, padding not: D integer tensors of shape (B,)."""
    counts = [torch.full((len(x),), math.prod(grid(model, x)) + model.num_prefix_tokens)]
    for plan in plans(model, x):
        counts.append(counts[-1] if plan is None else plan.tokens())
    return counts[1:]
