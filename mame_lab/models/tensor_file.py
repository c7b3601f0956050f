"""Files of tensors, read without running code that they may hold; what is wrong with one is said in one line."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from mame_lab.errors import MameLabError

POINTER = b"version https://git-lfs"
# Files of weights, by what their names end in.
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
CORES = ("core", "_core")
UNSAFE = re.compile(r"GLOBAL ([\w.]+) (?:was|whose)")
SCALARS = tuple(type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV")


def read(path: str | Path, key: str, advice: str = "get it again") -> Any:
    """What a file holds: tensors by their names, or what torch.save was given, on the CPU.

    Beside tensors it may hold plain values, numpy's scalars and arrays, and an argparse.Namespace of these.

    Args:
        path: of a file that exists; what it holds decides how it is read, not its name.
        key: of the configuration, for messages.
        advice: what to do about a file that is broken.

    Raises:
        MameLabError: it is empty, a pointer of Git LFS or cut off, no file of tensors, or holds other objects.
    """
    check(path, key, advice)
    try:
        if is_safetensors(path):
            return load_file(path)
        with plain_objects(), Path(path).open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MameLabError(f"{key}={path} cannot be read: {_fault(path, error, advice)}") from error


def check(path: str | Path, key: str, advice: str = "get it again") -> None:
    """Raise MameLabError where a file is empty or a pointer of Git LFS."""
    start = _start(path)
    if not start:
        raise MameLabError(f"{key}={path} is empty (0 bytes): {advice}")
    if start.startswith(POINTER):
        raise MameLabError(f"{key}={path} is a pointer of Git LFS in the place of the file: run `git lfs pull` there")


def check_folder(folder: str | Path, key: str) -> None:
    """`check` for all files of weights in and below a folder that cannot be loaded: one that loads may hold others."""
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            check(path, key)


def is_safetensors(path: str | Path) -> bool:
    """Whether a file is in the format of safetensors, whatever it is called: a length of 8 bytes, then JSON."""
    return _start(path)[8:9] == b"{"


@contextmanager
def plain_objects() -> Iterator[None]:
    """torch.load(weights_only=True) also takes numpy's scalars and arrays, and an argparse.Namespace."""
    functions: dict[str, Any] = {"scalar": np.float64(1).__reduce__()[0], "_reconstruct": np.ones(1).__reduce__()[0]}
    # numpy 1 and numpy 2 call their module by different names.
    named = [(function, f"numpy.{core}.multiarray.{name}") for name, function in functions.items() for core in CORES]
    with torch.serialization.safe_globals([np.ndarray, np.dtype, *SCALARS, Namespace, *named]):
        yield


def _start(path: str | Path) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(len(POINTER))


def _fault(path: str | Path, error: Exception, advice: str) -> str:
    objects = UNSAFE.findall(str(error))  # PyTorch lists them all, but not those of its format before 1.6.
    with suppress(Exception), plain_objects():
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if objects:
        return (
            f"it holds {', '.join(sorted(objects)[:3])} beside or instead of tensors, and objects are not loaded, for "
            f"they can run code: save its tensors alone, with torch.save(model.state_dict(), FILE) or safetensors"
        )
    if "TorchScript" in str(error):
        return "it is a program of TorchScript: save its tensors alone, with torch.save(model.state_dict(), FILE)"
    reason = error.strerror if isinstance(error, OSError) else None
    return f"{reason or 'it is cut off, or no file of tensors'}: {advice}"
