"""What a run's checkpoint holds: its configuration as plain values, and the weights of its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mame_lab.errors import MameLabError
from mame_lab.models.renames import upgraded

if TYPE_CHECKING:
    from torch import Tensor


class Checkpoint(NamedTuple):
    """What train.py saved.

    Attributes:
        path: of the file.
        key: what named it on the command line.
        config: the configuration as plain values.
        state: the state dict of the model alone.
        step: updates of the weights.
    """

    path: Path
    key: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    step: int


def read(path: str | Path, key: str = "ckpt") -> Checkpoint:
    """Read a checkpoint of `train.py`, named by the key `key`; nothing but tensors and plain values is loaded.

    Raises:
        MameLabError: there is no such file, or it is none of a run.
    """
    from mame_lab.models import tensor_file

    if not Path(path).is_file():
        fault = "is a folder" if Path(path).is_dir() else "does not exist"
        raise MameLabError(f"{key}={path} {fault}: give the best.ckpt or last.ckpt of a run")
    content = tensor_file.read(path, key, "give another best.ckpt or last.ckpt of a run, or start anew")
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(config, dict) or not {"model", "mame", "dataset", "seed"} <= set(config):
        raise MameLabError(f"{key}={path} is no checkpoint of train.py: give plain weights as model.weights=FILE.pth")
    state = {
        name.removeprefix("model."): value for name, value in content["state_dict"].items() if name.startswith("model.")
    }
    return Checkpoint(Path(path), key, upgraded(config), state, content["global_step"])
