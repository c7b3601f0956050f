"""Vision transformers of Hugging Face transformers: ViT, DINOv2, VideoMAE.

B batch, D depth, T frames, N patch tokens, C channels.
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
from mame_lab.models.transformers.forward import (
    MergingBackbone,
    MergingClassifier,
    check_attention,
    layers_of,
    prefix_of,
)
from mame_lab.models.transformers.loading import build, data_config, load, load_weights, match_classes
from mame_lab.models.transformers.support import architecture_by_class, architecture_of

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


def attach(model: Any, method: Method) -> None:
    """Give the model its way through merging, replacing an earlier one; a method that is off leaves it plain.

    Args:
        model: a classifier or a backbone.

    Raises:
        UnsupportedModelError: the model is not exactly one of those that are known; it is left as it was.
        MameLabError: the schedule does not fit the model; it is left as it was.
    """
    architecture_of(model)
    check_attention(model)
    has_class_token = hasattr(model.base_model.embeddings, "cls_token")
    method = sequence_method(method, model.config.model_type, has_class_token)
    schedule = method.schedule_for(len(block_names(model)))
    schedule.walk(model.base_model.embeddings.patch_embeddings.num_patches, warn=True)
    detach(model)
    if not schedule.off:
        _enter(model, method, schedule)


def _enter(model: Any, method: SequenceMethod, schedule: Schedule) -> None:
    _change(model, architecture_of(model).merging)
    depth = len(schedule.amounts)
    methods = [method.for_block(block, depth) for block in range(depth)]
    for part in (model, model.base_model):
        vars(part).update(method=method, methods=methods, schedule=schedule)


def detach(model: Any) -> None:
    """Give back transformers' own classes, whose parameters never changed, whatever else was changed in the model."""
    if isinstance(model.base_model, MergingBackbone):
        _change(model, architecture_by_class(model).plain)
        for part in (model, model.base_model):
            for key in ("method", "methods", "schedule"):
                vars(part).pop(key, None)


def _change(model: Any, classes: dict[type[nn.Module], type[nn.Module]]) -> None:
    parts = [module for module in model.modules() if type(module) in classes]
    check_forwards(model, parts)
    for part in parts:
        become(part, classes[type(part)])


def feature_and_patches(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """What enters the head (B, C), and the patch tokens (B, N, C) after the final norm on the full grid, in one pass.

    Of a merged model the feature is that of its merged tokens, and the patch tokens are restored (MaRe).
    """
    merging: Any = model if isinstance(model, MergingClassifier) else splittable_copy(model)
    return merging.feature_and_patches(x)


def name_classes(model: Any, classes: list[str]) -> None:
    """Tell the model what the classes are called: nothing to a head of numbers."""


def splittable_copy(model: Any) -> nn.Module:
    """A copy that shares all parameters and buffers, merges as the model does, and can stop and go on at a stage.

    It has `halfway` and takes what that gives as input; see `mame_lab.models.stages`.
    """
    split_model = shared_copy(model)
    if not isinstance(split_model.base_model, MergingBackbone):
        _enter(split_model, Ward(r=0), Schedule((0,) * len(block_names(split_model))))
    return split_model


def classifier(model: Any) -> nn.Module:
    """The module that features enter and logits leave; an identity where the model has no head."""
    return model.classifier


def block_names(model: Any) -> list[str]:
    """The names of the layers, in order."""
    layers = layers_of(model.base_model)
    path = layers if model.base_model is model else f"{model.base_model_prefix}.{layers}"
    return [f"{path}.{index}" for index in range(len(model.get_submodule(path)))]


def fused_attention(model: Any) -> bool:
    """Whether attention is PyTorch's scaled_dot_product_attention."""
    return model.config._attn_implementation == "sdpa"


def plans(model: Any, x: Tensor) -> list[MergePlan | None]:
    """The merge step of each layer, None where it has none."""
    backbone = model.base_model
    return backbone.plans(x) if isinstance(backbone, MergingBackbone) else [None] * len(block_names(model))


def grid(model: Any, x: Tensor) -> tuple[int, ...]:
    """Rows and columns of the patch tokens of these images (B, 3, H, W); of videos (B, T, 3, H, W) time in front."""
    embeddings = model.base_model.embeddings.patch_embeddings
    height, width = (side // patch for side, patch in zip(x.shape[-2:], embeddings.patch_size, strict=True))
    return (height, width) if x.ndim == 4 else (x.shape[1] // embeddings.tubelet_size, height, width)


def trace(model: Any, x: Tensor) -> list[Tensor]:
    """Tokens of every sample after each layer, prefix counted, padding not: D integer tensors of shape (B,)."""
    counts = [torch.full((len(x),), math.prod(grid(model, x)) + prefix_of(model.base_model))]
    for plan in plans(model, x):
        counts.append(counts[-1] if plan is None else plan.tokens())
    return counts[1:]
