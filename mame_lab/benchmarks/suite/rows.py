"""The rows of the suite, as files that are complete after every row.

python -m mame_lab.benchmarks.suite.rows suite.csv     prints them as Markdown
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from mame_lab.measure.conditions import Conditions

HEADERS = "model", "batch", "what", "arm", "ms", "speed-up", "ideal", "realised", "MB", "bandwidth"


class SuiteRow(NamedTuple):
    """One arm of one model at one batch size.

    Attributes:
        subject: the model.
        batch: samples in a batch.
        what: forward pass, compiled, merge steps, training step, denoising step, or attention with a bias alone.
        arm: the method, or unmerged.
        ms: milliseconds a call, median.
        speedup: times faster than unmerged, or than without a bias, median over the rounds in which both took turns.
        ideal: the ratio of multiply-adds, mean over the samples.
        memory_mb: the most that one call held beside weights and inputs.
        bandwidth: of merge steps, the least bytes that they have to move over the time, as a share of what a copy
            reaches.
    """

    subject: str
    batch: int
    what: str
    arm: str
    ms: float
    speedup: float | None = None
    ideal: float | None = None
    memory_mb: float | None = None
    bandwidth: float | None = None

    def cells(self) -> list[str]:
        """As text, under `HEADERS`."""
        realised = self.speedup / self.ideal if self.speedup and self.ideal and self.arm != "unmerged" else None
        values = ("{:.2f}x", self.speedup), ("{:.2f}x", self.ideal), ("{:.0%}", realised), ("{:.0f}", self.memory_mb)
        shown = ["" if value is None else form.format(value) for form, value in (*values, ("{:.0%}", self.bandwidth))]
        return [self.subject, str(self.batch), self.what, self.arm, f"{self.ms:.3g}", *shown]


class Rows:
    """Writes suite.csv row by row, and prints each.

    Args:
        folder: of the file.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.found = folder / "suite.csv", []
        folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerow(SuiteRow._fields)

    def add(self, row: SuiteRow) -> None:
        self.found.append(row)
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(row)
        print("  ".join(filter(None, row.cells())), flush=True)


def write_json(path: Path, found: Iterable[SuiteRow], conditions: Conditions, more: dict[str, Any]) -> None:
    rows = [row._asdict() for row in found]
    path.write_text(json.dumps({"conditions": asdict(conditions), **more, "rows": rows}, indent=1))


def markdown(found: Iterable[SuiteRow]) -> str:
    """A table for a README."""
    lines = [list(HEADERS), ["---"] * len(HEADERS), *(row.cells() for row in found)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read(path: Path) -> list[SuiteRow]:
    """The rows of a suite.csv."""
    with path.open(newline="") as file:
        return [_row(cells) for cells in csv.DictReader(file)]


def _row(cells: dict[str, str]) -> SuiteRow:
    texts = {key: cells[key] for key in ("subject", "what", "arm")}
    numbers = {key: float(cells[key]) if cells[key] else None for key in SuiteRow._fields[4:]}
    return SuiteRow(batch=int(cells["batch"]), **texts, **numbers)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    import sys

    print(markdown(read(Path(sys.argv[1]))), end="")
