"""What families share in fetching weights and reading them from files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm
from huggingface_hub import constants, get_session
from torch import Tensor

from mame_lab.errors import MameLabError


@contextmanager
def no_retries_offline() -> Iterator[None]:
    """Where the hub does not answer, use its local cache at once instead of retrying for a minute."""
    offline = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


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


def in_one_line(error: Exception) -> str:
    """What an error says, its first two lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
