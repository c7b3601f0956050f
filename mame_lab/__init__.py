"""MaMe and MaRe: matrix-only, training-free, differentiable token merging, and its inverse (arXiv 2604.13432).

    model = mame_lab.apply(timm.create_model("vit_base_patch16_224", pretrained=True), r=8)

This is an independent implementation.
"""

from mame_lab.errors import MameLabError, UnsupportedModelError
from mame_lab.merging import ATC, MCTF, Drop, EViT, MaMe, PiToMe, ToFu, ToMe, Ward
from mame_lab.model_summary import summary
from mame_lab.models import apply, remove
from mame_lab.targets import solve

__all__ = [
    "ATC",
    "MCTF",
    "Drop",
    "EViT",
    "MaMe",
    "MameLabError",
    "PiToMe",
    "ToFu",
    "ToMe",
    "UnsupportedModelError",
    "Ward",
    "apply",
    "remove",
    "solve",
    "summary",
]
__version__ = "0.1.0"
