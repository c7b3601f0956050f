"""Weights from files, and whether they fit."""

from pathlib import Path

import timm
from torch import Tensor

from mame_lab.errors import MameLabError
from mame_lab.hub import in_one_line


def read_weights(path: str) -> dict[str, Tensor]:
    """The state dict in a safetensors file, or in a PyTorch file that holds nothing but tensors and plain values."""
    if not Path(path).is_file():
        raise MameLabError(f"model.weights={path} does not exist: give a .safetensors or .pth file")
    try:
        return timm.models.load_state_dict(path, weights_only=True)
    except Exception as error:
        raise MameLabError(f"model.weights={path} cannot be read: {in_one_line(error)}") from error


def check_fit(origin: str, misfits: dict[str, list[str]]) -> None:
    """Raise MameLabError for the first kind of misfit ("lacks") that tensors, given by their names, have."""
    for kind, keys in misfits.items():
        if keys:
            raise MameLabError(f"{origin} does not fit the model: it {kind} {len(keys)} tensors, {keys[0]} among them")
