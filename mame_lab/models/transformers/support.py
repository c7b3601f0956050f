"""Which transformers models can be merged: those whose forward pass is known, by the exact types of their parts."""

from functools import partial
from typing import Any

from torch import nn

from mame_lab.models.parts import check_forwards, check_hooks, containers, name_of, unsupported
from mame_lab.models.transformers.architecture import Architecture
from mame_lab.models.transformers.clip import CLIP
from mame_lab.models.transformers.dinov2 import DINOV2, DINOV2_BACKBONE, DINOV2_WITH_REGISTERS
from mame_lab.models.transformers.dinov3 import DINOV3
from mame_lab.models.transformers.forward import bypassed
from mame_lab.models.transformers.siglip import SIGLIP
from mame_lab.models.transformers.videomae import VIDEOMAE
from mame_lab.models.transformers.vit import VIT

ARCHITECTURES = (VIT, DINOV2, DINOV2_BACKBONE, DINOV2_WITH_REGISTERS, DINOV3, VIDEOMAE, SIGLIP, CLIP)
SUPPORTED = "transformers' " + ", ".join(
    pair[0].__name__ for each in ARCHITECTURES for pair in (each.classifier, each.transformer) if pair
)
_unsupported = partial(unsupported, supported=SUPPORTED)


def architecture_of(model: nn.Module) -> Architecture:
    """The classes of the model, by its own class; UnsupportedModelError for one that is not known."""
    for architecture in ARCHITECTURES:
        if type(model) in architecture.models:
            return architecture
    raise _unsupported(model, "it has a forward pass of its own")


def backbone_of(model: nn.Module) -> Any:
    """The backbone of a classifier; a backbone itself."""
    architecture = architecture_of(model)
    for module in (model, *model.children()):
        if type(module) in architecture.transformer:
            return module
    raise _unsupported(model, f"it has no backbone of class {architecture.transformer[0].__name__}")


def check(model: Any) -> None:
    """Raise UnsupportedModelError for a model that would be merged wrongly or not at all."""
    architecture, backbone = architecture_of(model), backbone_of(model)
    merging: Any = architecture.transformer[1]
    around = containers(backbone, merging.blocks_at) if model is backbone else bypassed(backbone, merging)
    parts = [model, *around]
    for layer in backbone.get_submodule(merging.blocks_at):
        if type(layer) not in architecture.block:
            raise _unsupported(model, f"it has layers of class {name_of(layer)}")
        attention = getattr(layer, "attention", None) or layer.self_attn
        attentions = [attention, getattr(attention, "attention", attention)]
        for part in attentions:
            if type(part) not in architecture.attentions:
                raise _unsupported(model, f"it has attention of class {name_of(part)}")
        parts += [layer, *attentions]
    if getattr(model, "fc_norm", model) is None:
        raise _unsupported(model, "it classifies its first patch (use_mean_pooling=false)")
    check_hooks(model, around)
    check_forwards(model, parts)
