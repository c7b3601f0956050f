"""Tensors that are made once and kept on disk, by a hash of all that they follow from."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FOLDER = "MAME_LAB_CACHE"  # in the environment


def key(traits: str, tensors: dict[str, Tensor]) -> str:
    """64 hex digits: sha256 over the traits, and over name, dtype, shape and bytes of all tensors."""
    digest = hashlib.sha256(traits.encode())
    for name, x in sorted(tensors.items()):
        digest.update(f" {name} {x.dtype} {tuple(x.shape)} ".encode())
        digest.update(_bytes(x))
    return digest.hexdigest()


def kept(key: str, make: Callable[[], Tensor]) -> Tensor:
    """What was made under this key, now or in an earlier run; it says where a file is damaged or cannot be written."""
    path = Path(os.environ.get(FOLDER, "~/.cache/mame_lab")).expanduser() / f"{key}.safetensors"
    x = _read(path)
    if x is None:
        x = make()
        _write(x, path)
    return x


def _read(path: Path) -> Tensor | None:
    """None if there is no such file, or if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            x = file.get_tensor("x")
            if file.metadata()["sha256"] == _sha256(x):
                return x
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, TypeError):
        pass
    print(f"{path} is damaged: made again.")
    return None


def _write(x: Tensor, path: Path) -> None:
    """Whole or not at all, with a checksum."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"x": x}, part, {"sha256": _sha256(x)})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        print(f"{path} cannot be written, so the next run makes it again ({error}): set {FOLDER} to another folder.")


def _sha256(x: Tensor) -> str:
    return hashlib.sha256(_bytes(x)).hexdigest()


def _bytes(x: Tensor) -> Any:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
