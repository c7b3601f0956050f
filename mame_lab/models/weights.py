"""Weights from files, and whether they fit."""

from pathlib import Path

import timm
from torch import Tensor

from mame_lab import tensor_file
from mame_lab.errors import MameLabError

# Where training scripts keep the state dict in what they save; averaged weights come first.
PLACES = ("state_dict_ema", "model_ema", "state_dict", "model")


def read_weights(path: str) -> dict[str, Tensor]:
    """The state dict in a safetensors file, or in a PyTorch file that holds nothing but tensors and plain values."""
    if not Path(path).is_file():
        fault = "is a folder" if Path(path).is_dir() else "does not exist"
        raise MameLabError(f"model.weights={path} {fault}: give a .safetensors or .pth file")
    content = tensor_file.read(path, "model.weights")
    if isinstance(content, dict):
        content = next((content[place] for place in PLACES if content.get(place) is not None), content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise MameLabError(f"model.weights={path} holds no tensors by their names: give a state dict")
    return timm.models.clean_state_dict(content)


def check_fit(origin: str, misfits: dict[str, list[str]]) -> None:
    """Raise MameLabError for the first kind of misfit ("lacks") that tensors, given by their names, have."""
    for kind, keys in misfits.items():
        if keys:
            raise MameLabError(f"{origin} does not fit the model: it {kind} {len(keys)} tensors, {keys[0]} among them")
