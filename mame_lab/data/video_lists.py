"""Lists of videos with their labels: tables of Kinetics, tables of paths, or plain lines."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mame_lab.data.text_files import read_lines
from mame_lab.errors import MameLabError

KINETICS = ["label", "youtube_id", "time_start", "time_end"]
PATHS = ["path", "label"]
SEPARATORS = ",;\t"
NUMBER = re.compile(r"(-?)(\d+)(\.0*)?")
PLAIN = re.compile(r'("?)(.+?)\1[\s,;]+("?)(\d+)\3')


def read_list(path: Path) -> list[tuple[str, str]]:
    """The path, from the root, and the label of each video of `path`.

    Its first line names the columns label, youtube_id, time_start and time_end, whose videos are in the folder that is
    called like the list, or path and label; or all lines are "PATH LABEL", with the number of the class. A label is
    digits or a name; 3.0 in a table, as pandas writes a 3 among floats, is 3.

    Raises:
        MameLabError: the list is empty, or a line is none of these or has a negative label; the message names it.
    """
    lines = [(number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip()]
    take: Callable[[str], tuple[str, str]] = _plain
    if lines and (header := _header(path, lines[0][1])):
        take = partial(_row, header=header, separator=_separator(lines[0][1]), folder=path.stem)
        del lines[0]
    videos = []
    for number, line in lines:
        try:
            videos.append(take(line))
        except ValueError as error:
            raise MameLabError(f"{path}, line {number}: '{line}' {error}: mend it") from error
    if not videos:
        raise MameLabError(f"{path} lists no videos: write one a line")
    return videos


def _header(path: Path, line: str) -> list[str]:
    """The columns, if this line names them."""
    columns = _cells(line, _separator(line))
    if not {"label", "youtube_id"} & set(columns):
        return []
    if not any(set(wanted) <= set(columns) for wanted in (KINETICS, PATHS)):
        raise MameLabError(
            f"{path} has the columns {', '.join(columns)}: give it {', '.join(KINETICS)}, or {' and '.join(PATHS)}"
        )
    return columns


def _separator(header: str) -> str:
    return next((mark for mark in SEPARATORS if mark in header), ",")


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]


def _row(line: str, header: list[str], separator: str, folder: str) -> tuple[str, str]:
    cells = _cells(line, separator)
    row = dict(zip(header, cells, strict=False))
    wanted = PATHS if "path" in header else KINETICS
    if missing := [column for column in wanted if not row.get(column)]:
        raise ValueError(f"has no {missing[0]}")
    if wanted is KINETICS:
        start, end = (_seconds(row, column) for column in ("time_start", "time_end"))
        return f"{folder}/{row['youtube_id']}_{start:06}_{end:06}.mp4", _label(row)
    if any(cells[len(header) :]):
        raise ValueError("has more cells than columns are named")
    return row["path"], _label(row)


def _label(row: dict[str, str]) -> str:
    number = NUMBER.fullmatch(row["label"])
    if number is None:
        return row["label"]
    if number[1]:
        raise ValueError("has a negative number as its label")
    return number[2]


def _seconds(row: dict[str, str], column: str) -> int:
    try:
        return int(float(row[column]))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"has no number of seconds in {column}") from error


def _plain(line: str) -> tuple[str, str]:
    found = PLAIN.fullmatch(line.strip())
    if found is None:
        raise ValueError("is no 'PATH LABEL', with the number of the class")
    return found[2], found[4]
