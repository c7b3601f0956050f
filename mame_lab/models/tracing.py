"""What takes a model's code apart, and cannot while tokens merge: torch.fx and TorchScript."""

from typing import Any, NoReturn

from torch.fx import Proxy

from mame_lab.errors import UnsupportedModelError


class Unscripted:
    """A base of the classes that merge, which torch.jit.script asks before it compiles a model or a part of it."""

    def __prepare_scriptable__(self) -> NoReturn:
        raise _unsupported("torch.jit.script")


def refuse_fx(x: Any) -> None:
    """Raise UnsupportedModelError for an input of torch.fx, which stands for a tensor and has no values."""
    if isinstance(x, Proxy):
        raise _unsupported("torch.fx (symbolic_trace, create_feature_extractor)")


def _unsupported(tool: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{tool} is not supported while tokens merge: use torch.export or torch.jit.trace, for features timm's "
        f"forward_intermediates or transformers' output_hidden_states, or call mame_lab.remove first"
    )
