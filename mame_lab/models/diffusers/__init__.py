"""Diffusion pipelines with a U-Net: Stable Diffusion 1, 2 and XL. Their blocks, for a schedule, are its resolutions."""

from typing import Any

from torch import Tensor

from mame_lab.errors import MameLabError
from mame_lab.merging import METHODS, Method
from mame_lab.merging.grid.windows import targets_of
from mame_lab.merging.method import GridMethod
from mame_lab.models.diffusers.loading import load
from mame_lab.models.diffusers.support import PLAIN, plain, resolutions, transformers_of, unet_of
from mame_lab.models.diffusers.unet import (
    MergingAttention,
    MergingTransformer2D,
    UNetMergeContext,
    UnmergedAttention,
)
from mame_lab.models.parts import become, check_forwards

__all__ = ["attach", "detach", "load", "tokens"]


def attach(model: Any, method: Method) -> None:
    """Merge in the U-Net of a pipeline, or in a U-Net, replacing an earlier merging.

    Raises:
        UnsupportedModelError: the U-Net is not one of those that are known; it did not change.
        MameLabError: the method or its schedule does not fit; it did not change.
    """
    unet = unet_of(model)
    levels = resolutions(unet)
    if method.has_target:
        raise MameLabError(f"mame={method} has a target, which no U-Net is solved for: set mame.r, such as mame.r=0.5")
    if not isinstance(method, GridMethod):
        choices = ", ".join(name for name, each in METHODS.items() if issubclass(each, GridMethod))
        raise MameLabError(f"mame={method} cannot merge in a U-Net: choose from {choices}")
    if method.r is None:
        raise MameLabError(f"mame={method} has no budget, which a U-Net needs: set mame.r, such as mame.r=0.5")
    if getattr(method, "tau", None) is not None:
        raise MameLabError(
            f"mame.tau={vars(method)['tau']} has no meaning in a U-Net, where a source merges into one target: set it "
            f"to null"
        )
    schedule = method.schedule_for(len(levels))
    detach(model)
    if schedule.off:
        return
    for transformer in transformers_of(unet):
        become(transformer.module, MergingTransformer2D)
        for attention in transformer.cross_attentions:
            become(attention, UnmergedAttention)
        for attention in transformer.attentions:
            become(attention, MergingAttention)
            attention.level = levels.index(transformer.halvings)
    hook = unet.register_forward_pre_hook(UNetMergeContext(method, schedule).enter, with_kwargs=True)
    vars(unet).update(method=method, schedule=schedule, merging=hook)


def detach(model: Any) -> None:
    """Give back diffusers' own classes, whose parameters never changed."""
    unet = unet_of(model)
    if "merging" not in vars(unet):
        return
    parts = [module for module in unet.modules() if type(module) in PLAIN]
    check_forwards(unet, parts)
    unet.merging.remove()
    del unet.method, unet.schedule, unet.merging
    for part in parts:
        become(part, plain(part))
        vars(part).pop("level", None)


def tokens(model: Any, sample: Tensor) -> list[int]:
    """The tokens that self-attention sees at each resolution for these latents (B, C, H, W), the finest first."""
    unet = unet_of(model)
    counts = []
    for level, halvings in enumerate(resolutions(unet)):
        rows, columns = (-(-side // 2**halvings) for side in sample.shape[-2:])
        kept = targets_of(rows, columns)
        schedule = vars(unet).get("schedule")
        r = schedule.removed(level, rows * columns, rows * columns - kept) if schedule else 0
        counts.append(rows * columns - r)
    return counts
