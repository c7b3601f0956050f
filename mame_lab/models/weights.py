"""Weights from files, and whether they fit."""

from pathlib import Path

import timm
from torch import Tensor

from mame_lab.errors import MameLabError
from mame_lab.models import tensor_file

# Where training scripts keep the state dict in what they save; averaged weights come first.
PLACES = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "model_state_dict",
    "module",
    "net",
    "params",
    "teacher",
)


def read_weights(path: str) -> dict[str, Tensor]:
    """The state dict in a safetensors file, or in a PyTorch file that holds nothing but tensors and plain values.

    What lies beside its tensors and is none is left out.

    Raises:
        MameLabError: there is no such file, it cannot be read, or it holds no state dict where one is looked for.
    """
    if not Path(path).is_file():
        fault = "is a folder" if Path(path).is_dir() else "does not exist"
        raise MameLabError(f"model.weights={path} {fault}: give a .safetensors or .pth file")
    content = tensor_file.read(path, "model.weights")
    inner = [content.get(place) for place in PLACES] if isinstance(content, dict) else []
    state = next(filter(None, map(_tensors, [*inner, content])), None)
    if state is None:
        raise MameLabError(f"model.weights={path} holds no tensors by their names: give a state dict")
    return timm.models.clean_state_dict(state)


def _tensors(content: object) -> dict[str, Tensor]:
    """The tensors in a dict by their names; there are none in anything else."""
    entries = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in entries if isinstance(name, str) and isinstance(value, Tensor)}


def check_fit(origin: str, misfits: dict[str, list[str]]) -> None:
    """Raise MameLabError for the first kind of misfit ("lacks") that tensors, given by their names, have."""
    for kind, keys in misfits.items():
        if keys:
            raise MameLabError(f"{origin} does not fit the model: it {kind} {len(keys)} tensors, {keys[0]} among them")
