"""open_clip's image towers with a zero-shot head: SigLIP, SigLIP2, Perception Encoder, EVA-02-CLIP, MobileCLIP-B.

A tower is timm's own transformer, so merging in it is that of the timm family; only its head is made here.
"""

from mame_lab.models.open_clip.loading import build, load, load_weights
from mame_lab.models.timm import (
    attach,
    block_names,
    classifier,
    data_config,
    detach,
    feature_and_patches,
    grid,
    match_classes,
    plans,
    splittable_copy,
    trace,
)
from mame_lab.models.timm.forward import TimmTransformer

__all__ = [
    "attach",
    "block_names",
    "build",
    "classifier",
    "data_config",
    "detach",
    "feature_and_patches",
    "grid",
    "load",
    "load_weights",
    "match_classes",
    "name_classes",
    "plans",
    "splittable_copy",
    "trace",
]


def name_classes(model: TimmTransformer, classes: list[str]) -> None:
    """Write the zero-shot head from the names of the classes, and let go of the text tower.

    A model that has its head already, from a checkpoint, keeps it.
    """
    text = vars(model).pop("text", None)
    if text is not None:
        model.head.text_KC = text.features(classes).to(model.head.scale)
        model.num_classes = len(classes)
