"""Which transformers models can be merged: those whose forward pass is known, by the exact types of their parts."""

from typing import Any

from torch import nn

from mame_lab.errors import UnsupportedModelError
from mame_lab.models.parts import check_forwards, check_hooks, name_of
from mame_lab.models.transformers.dinov2 import DINOV2, DINOV2_WITH_REGISTERS
from mame_lab.models.transformers.forward import Architecture, around, layers_of
from mame_lab.models.transformers.videomae import VIDEOMAE
from mame_lab.models.transformers.vit import VIT

ARCHITECTURES = (VIT, DINOV2, DINOV2_WITH_REGISTERS, VIDEOMAE)
SUPPORTED = "transformers' " + ", ".join(
    plain.__name__ for architecture in ARCHITECTURES for plain in (architecture.classifier[0], architecture.backbone[0])
)


def architecture_of(model: nn.Module) -> Architecture:
    """The classes of the model; UnsupportedModelError for every one that would be merged wrongly or not at all."""
    architecture = architecture_by_class(model)
    _check(model, architecture)
    return architecture


def architecture_by_class(model: nn.Module) -> Architecture:
    """The same, whatever its parts are."""
    for architecture in ARCHITECTURES:
        if type(model) in (*architecture.classifier, *architecture.backbone):
            return architecture
    raise _unsupported(model, "it has a forward pass of its own")


def _check(model: Any, architecture: Architecture) -> None:
    backbone = model.base_model
    if type(backbone) not in architecture.backbone:
        raise _unsupported(model, f"it has a backbone of class {name_of(backbone)}")
    parts = [model, *around(model)]
    for layer in backbone.get_submodule(layers_of(backbone)):
        if type(layer) not in architecture.layer:
            raise _unsupported(model, f"it has layers of class {name_of(layer)}")
        attentions = [layer.attention, getattr(layer.attention, "attention", layer.attention)]
        for part in attentions:
            if type(part) not in architecture.attentions:
                raise _unsupported(model, f"it has attention of class {name_of(part)}")
        parts += [layer, *attentions]
    if getattr(model, "fc_norm", backbone) is None:
        raise _unsupported(model, "it classifies its first patch (use_mean_pooling=false)")
    check_hooks(model, around(model))
    check_forwards(model, parts)


def _unsupported(model: nn.Module, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"mame_lab cannot merge tokens in {name_of(model)}: {reason}. Supported: {SUPPORTED}")
