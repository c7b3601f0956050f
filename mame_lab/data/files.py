"""Files that are written whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole_file(path: Path, shared: bool = False) -> Iterator[Path]:
    """A file beside `path`, whose folder is made, to write to: it becomes `path` at the end, and goes where that fails.

    Args:
        path: of the file.
        shared: other processes may be writing the same file, so the one beside it has a name of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid4().hex}.part" if shared else f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table of rows, each with a value a column."""
    with whole_file(path) as part, part.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
