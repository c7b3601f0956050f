"""`metrics.csv` of a run: one file, continuous over every time that the run goes on."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from mame_lab.data.files import whole_file

Row = dict[str, Any]


class MetricsFile(Logger):
    """Appends a row for each call; the file is whole at every moment, but for its last line.

    Args:
        path: of the file.
        step: where the run goes on: what an earlier start of it wrote from this step on is dropped.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = ["step"]
        self._start(step)

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's folder holds its configuration already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step} | metrics
        if row.keys() <= set(self.columns):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        else:
            self._write([*self._read(), row])

    @rank_zero_only
    def _start(self, step: int) -> None:
        kept = [row for row in self._read() if int(row.get("step", step)) < step]
        if kept:
            self._write(kept)
        else:
            self.path.unlink(missing_ok=True)

    def _read(self) -> list[Row]:
        if not self.path.exists():
            return []
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1].splitlines()
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(whole)]

    def _write(self, rows: list[Row]) -> None:
        self.columns = list(dict.fromkeys([*self.columns, *(key for row in rows for key in row)]))
        with whole_file(self.path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
