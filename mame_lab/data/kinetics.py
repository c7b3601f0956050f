"""Kinetics-400 (Kay et al., arXiv 1705.06950), or any videos with a list of their labels."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

from mame_lab.data.dataset import VideoDataset
from mame_lab.data.splits import Splits
from mame_lab.data.text_files import read_names
from mame_lab.data.video_lists import read_list
from mame_lab.data.videos import VideoFile, find_faults
from mame_lab.errors import MameLabError

BROKEN = ("error", "skip")
CHECKED = "checked.json"
NAMED = 10  # broken videos in a warning, at most
log = logging.getLogger(__name__)

Files = list[tuple[str, int]]


@dataclass(frozen=True)
class VideoFiles:
    """(video, label) pairs, opened when they are read; `files` holds (path, label)."""

    files: Files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[VideoFile, int]:
        path, label = self.files[index]
        return VideoFile(path), label

    def sources(self) -> list[str]:
        """The files that it reads."""
        return [path for path, _ in self.files]


@dataclass
class Kinetics400(VideoDataset):
    """Videos and lists of their labels, in a fixed mixed order; val is test, as is usual.

    The lists are val.csv and, for training or k-NN, train.csv, in the root or in its folder `annotations`: either those
    of Kinetics, with the columns label, youtube_id, time_start, time_end, whose videos are val/ID_000010_000020.mp4
    (and train/...) in the root; or tables with the columns path, from the root, and label; or lines "PATH LABEL".

    Labels are numbers of classes in all lists, or, in tables, names in all lists. A class is a line of classes.txt in
    the root, counted from 0. Without that file it is called like its number, or names are numbered by the alphabet.

    A broken video is missing, cannot be decoded, or ends early. With `on_broken=skip` all videos are decoded once, when
    they are first used, and broken ones are then in no split: so order, batches and shares of processes are those of a
    dataset that never had them, none stands in for another, and the result says how many its accuracy leaves out. What
    is found is named in the log and kept in the root's checked.json.

    Args:
        root: the folder.
        on_broken: what a broken video does: "error" ends the run when it is met, "skip" leaves it out.
    """

    name: str = "kinetics400"
    batch_size: int = 8
    frame_stride: int = 4
    clips: int = 5
    crops: int = 3
    root: str | None = None
    on_broken: str = "error"

    uncached: ClassVar[frozenset[str]] = VideoDataset.uncached | {"on_broken"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on_broken not in BROKEN:
            raise MameLabError(f"dataset.on_broken={self.on_broken} is unknown: choose one of {', '.join(BROKEN)}")

    def splits(self) -> Splits:
        root = Path(self.root or "").expanduser()
        lists = {split: path for split in ("val", "train") if (path := _list(root, split))}
        if self.root is None or "val" not in lists:
            fault = "is not set" if self.root is None else "holds no val.csv"
            raise MameLabError(
                f"dataset.root={self.root} {fault}: set dataset.root to a folder of videos with the lists of "
                f"their labels, val.csv and, to train, train.csv"
            )
        listed = {split: _read(root, path) for split, path in lists.items()}
        labels = {label: lists[split] for split, videos in listed.items() for _, label in videos}
        numbers, classes = _classes(root / "classes.txt", labels)
        videos = {split: [(path, numbers[label]) for path, label in each] for split, each in listed.items()}
        conditions = {"views": f"{self.clips}x{self.crops}"}
        if self.on_broken == "skip":
            whole = {split: _whole(root, lists[split], each) for split, each in videos.items()}
            conditions["broken"] = f"{len(videos['val']) - len(whole['val'])} of {len(videos['val'])} left out"
            videos = whole
        val, train = (VideoFiles(videos[split]) if split in videos else None for split in ("val", "train"))
        assert val is not None
        return Splits(train, val, val, classes, conditions)


def _list(root: Path, split: str) -> Path | None:
    paths = root / f"{split}.csv", root / "annotations" / f"{split}.csv"
    return next((path for path in paths if path.is_file()), None)


def _read(root: Path, path: Path) -> list[tuple[str, str]]:
    """The path and the label of each video, in a fixed mixed order."""
    videos = [(str(root / name), label) for name, label in read_list(path)]
    random.Random(0).shuffle(videos)
    return videos


def _classes(path: Path, labels: dict[str, Path]) -> tuple[dict[str, int], list[str]]:
    """The numbers of the labels, and the names of the classes in the order of these.

    Args:
        path: of the names of the classes; it need not exist.
        labels: each with a list that holds it.

    Raises:
        MameLabError: some labels are numbers and some are names, or the file has no line for one.
    """
    digits = {label: int(label) for label in labels if label.isdecimal()}
    words = sorted(labels.keys() - digits)
    if digits and words:
        number, name = min(digits), words[0]
        raise MameLabError(
            f"{labels[number]} has the number {number} as a label, and {labels[name]} the name '{name}': give all "
            f"labels as numbers, or all as names"
        )
    names = read_names(path) if path.exists() else words or [str(number) for number in range(max(digits.values()) + 1)]
    if unknown := [label for label in words if label not in names]:
        raise MameLabError(
            f"{labels[unknown[0]]} has the label '{unknown[0]}', which is no line of {path}: add it there"
        )
    if digits and (most := max(digits.values())) >= len(names):
        raise MameLabError(f"{path} has {len(names)} lines, and there is a class {most}: give it a line for each class")
    return digits or {label: names.index(label) for label in words}, names


def _whole(root: Path, path: Path, videos: Files) -> Files:
    """The videos of a list that are not broken; those that are get named in the log."""
    faults = find_faults([video for video, _ in videos], root / CHECKED)
    if faults:
        some = "; ".join(f"{video} ({fault})" for video, fault in islice(faults.items(), NAMED))
        more = f"; and more, all in {root / CHECKED}" if len(faults) > NAMED else ""
        log.warning(
            "dataset.on_broken=skip leaves out %d of the %d videos of %s: %s%s",
            len(faults),
            len(videos),
            path,
            some,
            more,
        )
    whole = [(video, label) for video, label in videos if video not in faults]
    if not whole:
        video, fault = next(iter(faults.items()))
        raise MameLabError(f"all videos of {path} are broken, {video} for one ({fault}): check dataset.root={root}")
    return whole
