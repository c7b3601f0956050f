"""Cached samples, in files of many.

S samples of a file, M tokens of all of them, N tokens of one, C channels.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from errno import ENOSPC
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mame_lab.data import disk_cache
from mame_lab.data.files import whole_file
from mame_lab.errors import MameLabError
from mame_lab.models.split_forward import Sample

FILE_BYTES, FILE_SAMPLES = 64e6, 256  # of a file at most, roughly
ABOUT = "about.json"
ABANDONED = 3600  # seconds after which nobody writes a part of a file any more


class CachedSample(NamedTuple):
    """A sample and its label."""

    sample: Sample
    label: int


class Store:
    """A folder of safetensors files of equally many samples each; every file is there whole or not at all.

    Args:
        folder: where they are.
        samples: of all files.
        per_file: samples of a file.
        sample_bytes: what a sample takes, roughly.
    """

    def __init__(self, folder: Path, samples: int, per_file: int, sample_bytes: int) -> None:
        self.folder, self.samples, self.per_file, self.sample_bytes = folder, samples, per_file, sample_bytes
        self.opened: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> CachedSample:
        file, row = divmod(index, self.per_file)
        tensors = self._open(file)
        end_S = tensors["end_S"]
        mine = slice(int(end_S[row - 1]) if row else 0, int(end_S[row]))
        size_M1, origin_M = tensors.get("size_M1"), tensors.get("origin_M")
        sample = Sample(
            tensors["x_MC"][mine].to(torch.promote_types(tensors["x_MC"].dtype, torch.float32)),
            None if size_M1 is None else size_M1[mine],
            None if origin_M is None else origin_M[mine].long(),
        )
        return CachedSample(sample, int(tensors["label_S"][row]))

    @property
    def files(self) -> range:
        return range(-(-self.samples // self.per_file))

    def indices(self, file: int) -> range:
        """The samples of a file."""
        return range(self.samples)[file * self.per_file : (file + 1) * self.per_file]

    def missing(self, files: range) -> list[int]:
        """Those of the files that are not there or damaged; it prints the damaged ones."""
        missing = [file for file in files if not self._reads(file)]
        for path in (self._path(file) for file in missing):
            if path.exists():
                print(f"{path} is damaged: made again.")
        return missing

    def absent(self) -> list[int]:
        """The files that are not there."""
        return [file for file in self.files if not self._path(file).exists()]

    def write(self, file: int, cached: list[CachedSample], dtype: torch.dtype) -> None:
        """Write the samples of a file, their tokens in a dtype.

        Raises:
            OSError: it cannot be written.
        """
        samples = [each.sample for each in cached]
        x_MC = torch.cat([sample.x_NC for sample in samples])
        cached_MC = x_MC.to(dtype)
        if not cached_MC.isfinite().all() and x_MC.isfinite().all():
            raise MameLabError("finetune.cache_dtype=float16 cannot hold tokens so large: take bfloat16 or float32")
        tensors: dict[str, Tensor] = {
            "x_MC": cached_MC,
            "squares_2": torch.stack([(x_MC - cached_MC).double().square().sum(), x_MC.double().square().sum()]),
            "end_S": torch.tensor([len(sample.x_NC) for sample in samples]).cumsum(0),
            "label_S": torch.tensor([each.label for each in cached]),
        }
        if samples[0].size_N1 is not None:
            tensors["size_M1"] = torch.cat([sample.size_N1 for sample in samples])  # pyright: ignore
            tensors["origin_M"] = torch.cat([sample.origin_N for sample in samples]).int()  # pyright: ignore
        disk_cache.write(tensors, self._path(file))

    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    def error(self) -> float:
        """What the dtype on disk loses: the norm of the difference over that of the tokens."""
        squares_F2 = torch.stack([self._open(file)["squares_2"] for file in self.files])
        lost, total = squares_F2.sum(0).tolist()
        return (lost / total) ** 0.5

    def check_room(self) -> None:
        """Raise OSError if what is absent will not fit on the disk."""
        absent = sum(len(self.indices(file)) for file in self.absent())
        needed, free = absent * self.sample_bytes, shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(ENOSPC, f"it takes about {needed / 1e9:.2g} GB, and {free / 1e9:.2g} GB are free")

    def _open(self, file: int) -> dict[str, Tensor]:
        if file not in self.opened and not self._reads(file):
            raise MameLabError(f"{self._path(file)} is gone or damaged: run again, and it is made again")
        return self.opened[file]

    def _reads(self, file: int) -> bool:
        tensors = disk_cache.read(self._path(file))
        if tensors is None or len(tensors["label_S"]) != len(self.indices(file)):
            return False
        self.opened[file] = tensors
        return True

    def _path(self, file: int) -> Path:
        return self.folder / f"{file:06}.safetensors"


def create(store: Store, parts: dict[str, Any]) -> None:
    """Make the folder of a store, with about.json that says what it is of."""
    numbers = {name: getattr(store, name) for name in ("samples", "per_file", "sample_bytes")}
    with whole_file(store.folder / ABOUT, shared=True) as part:
        part.write_text(json.dumps(numbers | {"parts": parts}, indent=1))


def find(folder: Path) -> Store | None:
    """The store in a folder, if there is one; what killed runs left half written goes."""
    for part in folder.glob("*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
    try:
        about = json.loads((folder / ABOUT).read_text())
        return Store(folder, about["samples"], about["per_file"], about["sample_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def described(folder: Path) -> Iterator[dict[str, Any]]:
    """What all stores in a folder are of."""
    for path in folder.glob(f"*/{ABOUT}"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            yield json.loads(path.read_text())["parts"]
