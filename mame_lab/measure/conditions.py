"""What the numbers of a result hold for: the device, the precision, the versions, the weights."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# The names that libraries are installed by, where they are others.
DISTRIBUTIONS = {"open_clip": "open_clip_torch"}


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the numbers hold for. `more` is what else they depend on: the model, the data, the merging."""

    device: str
    dtype: str
    batch: int
    rounds: int
    threads: int
    seed: int | None
    weights: str  # see weights_hash
    versions: dict[str, str]
    commit: str | None  # of the working directory; None outside a git repository
    date: str
    processes: int = 1
    more: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        measured = f"{self.device}, {self.dtype}, batch {self.batch}, {self.threads} threads, {self.rounds} rounds"
        if self.processes > 1:
            measured = f"{self.processes} processes, each {measured}"
        origin = f"seed {self.seed}, weights {self.weights}, commit {self.commit or 'none'}, {self.date}"
        named = ", ".join(f"{name} {value}" for name, value in (self.more | self.versions).items())
        return f"Measured on {measured}; {origin}; {named}"


def gather_conditions(
    device: torch.device | str,
    dtype: object,
    batch: int,
    rounds: int,
    seed: int | None,
    weights: str,
    processes: int = 1,
    library: str = "timm",
    **more: Any,
) -> Conditions:
    """The conditions of this process, here and now. `weights` is the `weights_hash` of the model of `library`."""
    import torch

    return Conditions(
        device=_device_name(torch.device(device)),
        dtype=str(dtype).removeprefix("torch."),
        batch=batch,
        rounds=rounds,
        threads=torch.get_num_threads(),
        seed=seed,
        weights=weights,
        versions=_versions("mame_lab", "torch", "timm", library) | {"python": platform.python_version()},
        commit=_commit(),
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        processes=processes,
        more=more,
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor() or platform.machine()])[0]} CPU"


def _versions(*libraries: str) -> dict[str, str]:
    versions = {}
    for library in libraries:
        with suppress(PackageNotFoundError):
            versions[library] = version(DISTRIBUTIONS.get(library, library))
    return versions


def _commit() -> str | None:
    """Short hash of the working directory's commit, with -dirty if tracked files differ from it."""
    try:
        git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def weights_hash(module: torch.nn.Module) -> str:
    """12 hex digits that name the weights; checkpoints and results hold them, so they must stay the same."""
    from mame_lab.data.disk_cache import hash_tensors

    return hash_tensors(module.state_dict())[:12]
