"""Model families: one folder a library, which says how its models are loaded and where merging goes in.

A library is imported when it is first needed. What it has to say: see `base`.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, cast

from mame_lab.errors import MameLabError, UnsupportedModelError
from mame_lab.merging import Method, Ward
from mame_lab.merging.method import check_method
from mame_lab.models import checkpoint
from mame_lab.models.copies import shared_copy

if TYPE_CHECKING:
    from torch import nn

    from mame_lab.models.base import Family, Library
    from mame_lab.models.checkpoint import Checkpoint
    from mame_lab.models.settings import ModelSettings

# The libraries whose models can be merged: each has a folder here, which is a `Library` itself or names its `FAMILY`.
LIBRARIES = ("timm", "transformers", "diffusers", "open_clip")


def library(name: str) -> Library:
    """A library, by the name that `model.family` has.

    Raises:
        MameLabError: it is not known, or not installed.
    """
    if name not in LIBRARIES:
        raise MameLabError(f"model.family={name} is not known: choose from {', '.join(LIBRARIES)}")
    try:
        module = import_module(f"mame_lab.models.{name}")
    except ModuleNotFoundError as error:
        raise MameLabError(f"model.family={name} needs {error.name}: pip install 'mame_lab[{name}]'") from error
    return cast("Library", getattr(module, "FAMILY", module))


def family(name: str) -> Family:
    """The same, of vision transformers.

    Raises:
        MameLabError: also for diffusers, whose models are pipelines.
    """
    from mame_lab.models.base import Family

    found = library(name)
    if not isinstance(found, Family):
        raise MameLabError(f"model.family={name} is for dataset=prompts: choose one of vision transformers")
    return found


def load(settings: ModelSettings, stored: Checkpoint | None = None) -> nn.Module:
    """The model that the settings describe, with its weights: by its family's `load`, or from a checkpoint of train.py.

    The checkpoint is `stored`, or the one that `settings.weights` names.

    Raises:
        MameLabError: an unknown name, weights that cannot be fetched or read, or a file of another model.
    """
    if settings.is_checkpoint:
        stored = stored or checkpoint.read(str(settings.weights), "model.weights")
        settings = replace(settings, weights=None)
    if stored is None:
        return library(settings.family).load(settings)
    loader = family(settings.family)
    model = loader.build(settings)
    loader.load_weights(model, stored.state, f"{stored.key}={stored.path}", head_of_file=settings.num_classes != 0)
    return model


def library_of(model: nn.Module) -> Library:
    """The library that a model belongs to.

    Raises:
        UnsupportedModelError: its class comes from none that is known.
    """
    libraries = [base.__module__.split(".")[0] for base in type(model).__mro__]
    for name in LIBRARIES:
        if name in libraries:
            return library(name)
    raise UnsupportedModelError(
        f"mame_lab cannot merge tokens in {type(model).__module__}.{type(model).__qualname__}: its class is none of "
        f"{', '.join(LIBRARIES)}. Apply it to the model itself, before torch.compile, DDP or another wrapper"
    )


def family_of(model: nn.Module) -> Family:
    """The same, for what follows tokens from block to block.

    Raises:
        UnsupportedModelError: also for a diffusion pipeline, whose tokens come back after every attention.
    """
    from mame_lab.models.base import Family

    found = library_of(model)
    if not isinstance(found, Family):
        raise UnsupportedModelError(
            f"mame_lab.solve and mame_lab.summary do not take a {type(model).__qualname__}: set r, and let "
            f"eval.py dataset=prompts benchmark=denoiser say what it costs"
        )
    return found


def untrained_parameters(model: nn.Module) -> tuple[str, ...]:
    """How names of parameters begin that the logits of a model do not depend on; none of a model that is not known."""
    try:
        return family_of(model).untrained(model)
    except UnsupportedModelError:
        return ()


def apply(model: nn.Module, method: Method | None = None, **settings) -> nn.Module:
    """Merge tokens in a model, in place. Applying again replaces the earlier merging.

    Args:
        model: a supported model (see the README); it keeps its parameters, their names, and its training mode.
        method: a merge method, such as `MaMe(tau=0.9)`. None: `Ward` with the settings that follow.
        settings: of `Ward`: `r=8` removes 8 tokens in each of the first two thirds of the blocks, `tau=0.9` merges what
            is more similar than that. See `Ward`.

    Returns:
        The same model.

    Raises:
        UnsupportedModelError: (a TypeError) the model cannot be merged rightly; it is left as it was.
        MameLabError: (a ValueError) the settings are out of range or do not fit the model, or `method` is no method; it
            is left as it was.
    """
    if method is not None and settings:
        raise TypeError("mame_lab.apply takes a method or the settings of Ward, not both")
    if method is None:
        method = Ward(**settings)
    check_method(method)
    library_of(model).attach(model, method)
    return model


def remove(model: nn.Module) -> nn.Module:
    """Undo `apply`, to the bit. Returns the same model."""
    library_of(model).detach(model)
    return model


def merges(model: nn.Module) -> bool:
    """Whether merging is applied to the model, and not off."""
    return "method" in vars(model)


def depends_on_batch(model: nn.Module) -> bool:
    """Whether merging in the model makes a sample's cost depend on its batch."""
    method = vars(model).get("method")
    return method is not None and method.depends_on_batch


def is_adaptive(model: nn.Module) -> bool:
    """Whether the number of tokens that are removed depends on the images."""
    method = vars(model).get("method")
    return method is not None and method.is_adaptive


def unmerged_copy(model: nn.Module) -> nn.Module:
    """The same model without merging, which shares all parameters and buffers."""
    return remove(shared_copy(model))


def unmerged_snapshot(model: nn.Module) -> nn.Module:
    """The same model without merging, as its weights are now: frozen, in eval mode.

    It copies what trains in `model`, and shares the parameters that do not, and the buffers of modules in eval mode.
    """
    parameters = (parameter for parameter in model.parameters() if not parameter.requires_grad)
    buffers = (module.buffers(recurse=False) for module in model.modules() if not module.training)
    shared = {id(tensor): tensor for tensor in chain(parameters, *buffers)}
    return remove(copy.deepcopy(model, shared)).eval().requires_grad_(False)
