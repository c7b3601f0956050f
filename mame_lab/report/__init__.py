"""The report of runs: accuracy against speed and against FLOPs, tokens by block, and a table of every run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mame_lab.data.files import whole_file
from mame_lab.errors import MameLabError


def make(folders: Iterable[Path], out: Path) -> Path:
    """Write report.html (self-contained, opens offline) and report.png (its charts), each whole or not at all.

    Args:
        folders: of runs, or of sweeps, or of both: all runs under them are in the report.
        out: the folder to write to.

    Returns:
        The path of report.html.

    Raises:
        MameLabError: there is no run under the folders, or `out` cannot be written to.
    """
    from mame_lab.report import charts, page, runs

    found = runs.read_all(folders)
    drawn = charts.draw(found)
    try:
        _write(out / "report.png", charts.png(drawn, page.TITLE, [page.count(found), page.measured(found)]))
        _write(out / "report.html", page.html(found, drawn).encode())
    except OSError as error:
        raise MameLabError(f"--out={out} cannot be written to ({error.strerror}): choose another folder") from error
    return out / "report.html"


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as part:
        part.write_bytes(content)
