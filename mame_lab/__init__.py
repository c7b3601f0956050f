"""MaMe and MaRe: matrix-only, training-free, differentiable token merging, and its inverse (arXiv 2604.13432).

    model = mame_lab.apply(timm.create_model("vit_base_patch16_224", pretrained=True), r=8)

This is an independent implementation. A name is imported when it is first used, so that importing this is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mame_lab.errors import MameLabError, UnsupportedModelError
    from mame_lab.measure.summary import summary
    from mame_lab.merging import ATC, MCTF, Drop, EViT, MaMe, PiToMe, ToFu, ToMe, Ward
    from mame_lab.models import apply, remove
    from mame_lab.solver.solve import solve

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

_HOMES = {
    "MameLabError": "errors",
    "UnsupportedModelError": "errors",
    "apply": "models",
    "remove": "models",
    "solve": "solver.solve",
    "summary": "measure.summary",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'mame_lab' has no attribute {name!r}")
    return getattr(import_module(f"mame_lab.{_HOMES.get(name, 'merging')}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
