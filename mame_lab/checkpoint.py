"""What a run's checkpoint holds: its configuration as plain values, and the weights of its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from torch import Tensor


class Checkpoint(NamedTuple):
    """The configuration (see `config.plain`), the state dict of the model alone, and the updates of the weights."""

    path: Path
    config: dict[str, Any]
    state: dict[str, Tensor]
    step: int


def read(path: str | Path, key: str = "ckpt") -> Checkpoint:
    """Read a checkpoint of `train.py`, named by the key `key`; nothing but tensors and plain values is loaded.

    Raises:
        MameLabError: there is no such file, or it is none of a run.
    """
    import torch

    if not Path(path).is_file():
        raise MameLabError(f"{key}={path} does not exist: give the best.ckpt or last.ckpt of a run")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MameLabError(f"{key}={path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not {"model", "mame", "dataset", "seed"} <= set(content.get("config") or ()):
        raise MameLabError(f"{key}={path} is no checkpoint of train.py: give plain weights as model.weights=FILE.pth")
    state = {
        key.removeprefix("model."): value for key, value in content["state_dict"].items() if key.startswith("model.")
    }
    return Checkpoint(Path(path), content["config"], state, content["global_step"])
