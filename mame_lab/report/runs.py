"""Folders to runs: what was asked of each, and its Result or why there is none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from mame_lab.errors import MameLabError
from mame_lab.measure.result import Result

OVERRIDES = Path(".hydra", "overrides.yaml")  # makes a folder that of a run


@dataclass(frozen=True)
class Run:
    """One run. With neither result nor error it was killed, or goes on.

    Attributes:
        name: its folder, from where all runs of the report lie.
        overrides: of its command line, by key.
        result: what it measured.
        error: one line; why it failed.
    """

    name: str
    overrides: dict[str, str]
    result: Result | None = None
    error: str | None = None

    @property
    def status(self) -> str:
        if self.error is not None:
            return "failed"
        return "unfinished" if self.result is None else "finished"


def read_all(folders: Iterable[Path]) -> list[Run]:
    """All runs in or under the folders, each once, in the order of their numbers.

    Raises:
        MameLabError: there is none, or a folder does not exist.
    """
    folders = list(folders)
    for folder in folders:
        if not folder.is_dir():
            raise MameLabError(f"{folder} is no folder: give the folders of runs or of sweeps")
    paths = {path.parents[1].resolve() for folder in folders for path in folder.rglob(str(OVERRIDES))}
    if not paths:
        where = ", ".join(map(str, folders))
        raise MameLabError(f"no run lies in or under {where}: give the folder of a run, which holds {OVERRIDES}")
    base = os.path.commonpath([path.parent for path in paths])
    return [read(path, os.path.relpath(path, base)) for path in sorted(paths, key=_by_number)]


def read(folder: Path, name: str) -> Run:
    """The run of a folder; a file of it that cannot be read is the error of the run."""
    overrides = {}
    try:
        overrides = _overrides(folder / OVERRIDES)
        reason = folder / "error.txt"
        if reason.exists():
            return Run(name, overrides, error=reason.read_text(errors="replace").strip() or "error.txt is empty")
        result = folder / "result.json"
        return Run(name, overrides, result=_result(result) if result.exists() else None)
    except (OSError, ValueError) as error:
        return Run(name, overrides, error=str(error))


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys whose values are not the same everywhere, in the order they come."""
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if len({each.get(key) for each in settings}) > 1]


def telling(runs: Sequence[Run]) -> list[str]:
    """The overrides that tell the runs apart; where none does, all of them."""
    settings = [run.overrides for run in runs]
    return differing(settings) or list(common(settings))


def common(settings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What is the same everywhere."""
    varying = differing(settings)
    return {key: value for key, value in settings[0].items() if key not in varying} if settings else {}


def _overrides(path: Path) -> dict[str, str]:
    try:
        lines = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {key: value for key, _, value in (line.partition("=") for line in lines or [])}
    except (yaml.YAMLError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise MameLabError(f"{path} is no list of overrides") from error


def _result(path: Path) -> Result:
    try:
        result = Result.load(path)
        for arm in (result.merged, result.unmerged):
            sum([arm.gflops, arm.samples_per_s, *arm.tokens], start=0.0)
        return result
    except (TypeError, AttributeError, UnicodeDecodeError) as error:
        raise MameLabError(f"{path} is no result of this version: evaluate again") from error


def _by_number(path: Path) -> list[str | int]:
    """2 comes before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]
