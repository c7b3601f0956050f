"""Tensors that are computed once and cached on disk, by a hash of all that they follow from."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mame_lab.data.files import whole_file

FOLDER = "MAME_LAB_CACHE"  # in the environment


def folder() -> Path:
    """Where everything is cached."""
    return Path(os.environ.get(FOLDER) or "~/.cache/mame_lab").expanduser()


def hash_tensors(tensors: Mapping[str, Tensor], traits: str = "") -> str:
    """64 hex digits: sha256 over the traits, and over name, dtype, shape and bytes of all tensors."""
    digest = hashlib.sha256(traits.encode())
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)} ".encode())
        content: Any = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def cached(key: str, make: Callable[[], Tensor]) -> Tensor:
    """What was made under this key, now or in an earlier run; it says where a file is damaged or cannot be written."""
    path = folder() / f"{key}.safetensors"
    tensors = read(path)
    if tensors is None:
        if path.exists():
            print(f"{path} is damaged: made again.")
        tensors = {"x": make()}
        try:
            write(tensors, path)
        except OSError as error:
            print(f"{path} cannot be written, so it is made again next time ({error}): set {FOLDER} to another folder.")
    return tensors["x"]


def read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file, which stay on disk until they are used. None if there is none, or a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            return tensors if file.metadata()["sha256"] == hash_tensors(tensors) else None
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a file whole or not at all, with a checksum.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path, shared=True) as part:
        try:
            save_file(tensors, part, {"sha256": hash_tensors(tensors)})
        except SafetensorError as error:
            raise OSError(str(error)) from error
