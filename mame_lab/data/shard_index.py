"""Where the images are in WebDataset shards: found out once, and written beside them.

A place is four numbers: shard, offset and size in bytes, label; N images.
"""

from __future__ import annotations

import codecs
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from mame_lab.data.files import whole_file
from mame_lab.data.images import extensions
from mame_lab.data.progress import track
from mame_lab.errors import MameLabError

INDEX = "index.npz"
END = bytes(2 * tarfile.BLOCKSIZE)  # of every whole tar file


def find_images(shards: list[Path]) -> np.ndarray:
    """The places_N4 of the images of the shards of one folder, in order.

    They are read from index.npz there unless a shard has changed since in size or time, and written to it if they can.

    Raises:
        MameLabError: a shard is no whole tar file, or a sample in it lacks its image or its label.
    """
    stamps = np.array([f"{shard.name} {shard.stat().st_size} {shard.stat().st_mtime_ns}" for shard in shards])
    path = shards[0].parent / INDEX
    places_N4 = _read(path, stamps)
    if places_N4 is None:
        places_N4 = _all_places(shards)
        _write(path, stamps, places_N4)
    return places_N4


def _read(path: Path, stamps: np.ndarray) -> np.ndarray | None:
    try:
        with np.load(path) as index:
            return index["places"] if np.array_equal(index["stamps"], stamps) else None
    except (OSError, KeyError, ValueError, EOFError, BadZipFile):
        return None


def _write(path: Path, stamps: np.ndarray, places_N4: np.ndarray) -> None:
    with suppress(OSError), whole_file(path, shared=True) as part, part.open("wb") as file:
        np.savez(file, stamps=stamps, places=places_N4)


def _all_places(shards: list[Path]) -> np.ndarray:
    shown = enumerate(track(shards, f"indexing {shards[0].parent}"))
    places = [(number, *place) for number, shard in shown for place in _places(shard)]
    return np.array(places, dtype=np.int64).reshape(-1, 4)


def _places(shard: Path) -> list[tuple[int, int, int]]:
    """Offset, size and label of every image of a shard."""
    try:
        from webdataset.tariterators import group_by_keys
    except ImportError as error:
        raise MameLabError("dataset=shards needs webdataset: pip install 'mame_lab[shards]'") from error
    try:
        with tarfile.open(shard, mode="r:") as tar:
            files = [{"fname": file.name, "data": file, "__url__": ""} for file in _files(tar)]
            return [_place(shard, sample, tar) for sample in list(group_by_keys(files))]
    except MameLabError:
        raise
    except (OSError, tarfile.TarError, ValueError) as error:
        raise MameLabError(f"{shard} is no whole tar file of samples ({error}): write it again") from error


def _files(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    files = [member for member in tar if member.isreg()]
    # tarfile takes the first broken header for the end, and so a truncated shard for a whole one.
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(len(END)) != END:
        raise tarfile.ReadError(f"neither a file nor the end at byte {tar.offset}")
    return files


def _place(shard: Path, sample: dict[str, Any], tar: tarfile.TarFile) -> tuple[int, int, int]:
    image = next((sample[extension[1:]] for extension in extensions() if extension[1:] in sample), None)
    named = f"sample {sample['__key__']} of {shard}"
    if image is None or "cls" not in sample:
        held = ", ".join(name for name in sample if not name.startswith("__"))
        wanted = "its image (.jpg, .png, ...)" if image is None else "the number of its class (.cls)"
        raise MameLabError(f"{named} lacks {wanted}, it holds {held}: write the shard again")
    content = tar.extractfile(sample["cls"]).read()  # pyright: ignore[reportOptionalMemberAccess]
    label = content.removeprefix(codecs.BOM_UTF8).strip()
    if not label.isdigit():
        raise MameLabError(f"{named} is of class {content[:20]!r}: write the shard again, with the number of the class")
    return image.offset_data, image.size, int(label)
