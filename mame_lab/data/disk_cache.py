"""Tensors that are made once and kept on disk, by a hash of all that they follow from."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FOLDER = "MAME_LAB_CACHE"  # in the environment


def folder() -> Path:
    """Where everything is kept."""
    return Path(os.environ.get(FOLDER) or "~/.cache/mame_lab").expanduser()


def key(traits: str, tensors: Mapping[str, Tensor]) -> str:
    """64 hex digits: sha256 over the traits, and over name, dtype, shape and bytes of all tensors."""
    digest = hashlib.sha256(traits.encode())
    for name, x in sorted(tensors.items()):
        digest.update(f" {name} {x.dtype} {tuple(x.shape)} ".encode())
        digest.update(_bytes(x))
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
            return tensors if file.metadata()["sha256"] == key("", tensors) else None
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a file whole or not at all, with a checksum.

    Raises:
        OSError: it cannot be written.
    """
    part = part_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(tensors, part, {"sha256": key("", tensors)})
        part.replace(path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Where a file is written before it is whole; a name of its own, for others may be writing the same file."""
    return path.with_suffix(f".{uuid4().hex}.part")


def _bytes(x: Tensor) -> Any:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
