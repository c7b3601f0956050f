"""What the cached features follow from: where any of it changes, they are computed again."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pickle
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

import mame_lab
from mame_lab.data import disk_cache
from mame_lab.errors import MameLabError

PACKAGE = Path(mame_lab.__file__).parent
MATHEMATICS = ("merging", "models", "data", "training/feature_cache")
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "open_clip_torch", "pillow", "av")


def key(parts: dict[str, Any]) -> str:
    """16 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def differences(parts: dict[str, Any], others: Iterator[dict[str, Any]]) -> list[str]:
    """The names of the parts in which the most similar of the others of this split differs; none if there is none.

    Another view is something else, not one that changed; where the stage is another, so are of course the weights.
    """
    alike = [other for other in others if other.keys() == parts.keys() and other["split"] == parts["split"]]
    alike = [
        other for other in alike if None in (other.get("view"), parts.get("view")) or other["view"] == parts["view"]
    ]
    differing = [[name for name in parts if other[name] != parts[name] and name != "view"] for other in alike]
    changed = min(differing, key=len, default=[])
    return [name for name in changed if name != "weights" or "stage" not in changed]


def plain(parts: dict[str, Any]) -> dict[str, Any]:
    """The parts as they are read back from a file."""
    return json.loads(json.dumps(parts, default=str))


def weights(model: nn.Module) -> str:
    """Hash of the parameters and buffers that are frozen."""
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return disk_cache.hash_tensors({name: x for name, x in model.state_dict().items() if name not in learns})


def images(labelled: Any) -> str:
    """Hash of a collection of labelled images: of its content, and of the state of the files that it reads.

    They are those whose paths it holds, and those that it gives by a method `sources`; a file is known by path, size
    and time of its last change.
    """
    digest = hashlib.sha256()
    hashing = _Hashing(digest)
    hashing.dump(labelled)
    for path in dict.fromkeys([*getattr(labelled, "sources", list)(), *hashing.files]):
        try:
            status = os.stat(path)
        except OSError as error:
            raise MameLabError(f"{path} cannot be read ({error.strerror}): mend the dataset") from error
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns} ".encode())
    return digest.hexdigest()


def code(*parts: object) -> dict[str, str]:
    """Versions of the libraries, and a hash of the sources of what computes: of mame_lab, and of the parts' classes."""
    files = {path for part in MATHEMATICS for path in (PACKAGE / part).rglob("*.py")}
    for part in parts:
        files |= {Path(file) for cls in type(part).__mro__ if (file := _source(cls))}
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files)))
    versions = {name: version for name in LIBRARIES if (version := _version(name))}
    return {"sources": digest.hexdigest(), **versions}


class _Hashing(pickle.Pickler):
    """Hashes what it is given to pickle, and lists the paths of files in it."""

    def __init__(self, digest: Any) -> None:
        file: Any = SimpleNamespace(write=digest.update)
        super().__init__(file, protocol=4)
        self.files: dict[str, None] = {}

    def persistent_id(self, value: Any) -> None:
        if isinstance(value, str | Path) and os.sep in str(value) and os.path.isfile(value):
            self.files[str(value)] = None


def _source(cls: type) -> str | None:
    try:
        return inspect.getsourcefile(cls)
    except (TypeError, OSError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
