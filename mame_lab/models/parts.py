"""How the parts of a model, whichever its library, change between their own class and the one that merges.

A class is known by its exact type: a subclass has a forward pass that nobody here has read.
"""

from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, TypeVar

from torch import nn

from mame_lab.errors import UnsupportedModelError

Class = TypeVar("Class", bound=type)

# The methods of a part that merging replaces or goes around.
REPLACED = ("forward", "forward_features", "forward_head", "forward_intermediates", "pool")


def stands_in(cls: Class) -> Class:
    """Give a class the name of its last base, whose place it takes: what goes by names sees the plain model.

    Pickle goes by the qualified name, which stays.
    """
    cls.__name__ = cls.__bases__[-1].__name__
    return cls


def own_signature(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a forward that takes other arguments than that of the class whose place its class takes."""
    return forward


def become(part: nn.Module, cls: type[nn.Module]) -> None:
    """Change the class of a part, which then has the methods of that class."""
    for name in _set_on(part):
        del vars(part)[name]
    part.__class__ = cls


def check_forwards(model: nn.Module, parts: Iterable[nn.Module]) -> None:
    """Raise UnsupportedModelError where a method of a part was replaced, which merging would lose or break.

    The method of its own class may be set on a part: accelerate leaves it there where its hooks are removed.
    """
    for part in parts:
        for name in _set_on(part):
            if vars(part)[name] != MethodType(getattr(type(part), name), part):
                raise UnsupportedModelError(
                    f"mame_lab cannot change {name_of(model)}: the {name} of {path_of(part, model)} was replaced: "
                    f"{_undoing(part)}"
                )


def unsupported(model: nn.Module, reason: str, supported: str) -> UnsupportedModelError:
    """The error for a model that would be merged wrongly or not at all."""
    return UnsupportedModelError(f"mame_lab cannot merge tokens in {name_of(model)}: {reason}. Supported: {supported}")


def check_hooks(model: nn.Module, parts: Iterable[nn.Module]) -> None:
    """Raise UnsupportedModelError for a hook on a part that merging goes around, where it would not run."""
    for part in parts:
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            raise UnsupportedModelError(
                f"mame_lab cannot merge tokens in {name_of(model)}: {path_of(part, model)} has a hook, and is not "
                f"called while tokens merge: remove the hook, or set it on a block"
            )


def check_applied(model: nn.Module) -> None:
    """Raise UnsupportedModelError for a model made by the class of a merged one, to which nothing was applied."""
    if "method" not in vars(model):
        library = type(model).__bases__[-1]
        raise UnsupportedModelError(
            f"this {library.__name__} was made by the class of a merged model, and has no method: make it by "
            f"{library.__module__}.{library.__name__}, then call mame_lab.apply"
        )


def containers(model: nn.Module, blocks_at: str) -> list[nn.Module]:
    """The parts of a model that hold its blocks, which are called without them."""
    names = blocks_at.split(".")
    return [model.get_submodule(".".join(names[:end])) for end in range(1, len(names) + 1)]


def path_of(part: nn.Module, model: nn.Module) -> str:
    """The name of a part in the model."""
    return next(path for path, module in model.named_modules() if module is part) or "the model"


def _undoing(part: nn.Module) -> str:
    if "_original_forward" in vars(part):  # accelerate's own way back loses the decorators that a forward has.
        return "undo that: if accelerate's mixed precision did it, set its forward to its _original_forward"
    return (
        "undo that patch; if accelerate did it (device_map, dispatch_model, offloading), call "
        "accelerate.hooks.remove_hook_from_submodules(model)"
    )


def _set_on(part: nn.Module) -> list[str]:
    return [name for name in REPLACED if name in vars(part) and hasattr(type(part), name)]


def name_of(part: object) -> str:
    """The class of a part, and where it is from."""
    return f"{type(part).__module__}.{type(part).__qualname__}"
