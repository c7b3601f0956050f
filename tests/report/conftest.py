from pathlib import Path

import pytest
from made import make_result, save_run

from mame_lab import report


@pytest.fixture(scope="session")
def sweep(tmp_path_factory) -> Path:
    """Two models at two budgets; a run that failed, and one that did not end."""
    folder = tmp_path_factory.mktemp("sweep")
    small, base = {"model": "vit_s", "weights": "aaaaaaaaaaaa"}, {"model": "vit_b", "weights": "bbbbbbbbbbbb"}
    save_run(folder / "0", "dataset=digits", "model=s", "mame.r=4", result=make_result(800, 1500, 3.0, **small))
    save_run(folder / "1", "dataset=digits", "model=s", "mame.r=8", result=make_result(770, 2000, 2.0, **small))
    save_run(folder / "2", "dataset=digits", "model=b", "mame.r=4", result=make_result(850, 700, 12.0, **base))
    save_run(folder / "10", "dataset=digits", "model=b", "mame.r=8", result=make_result(790, 900, 8.0, **base))
    save_run(folder / "11", "dataset=digits", "model=b", "mame.r=<i>no</i>", error="mame.r='<i>no</i>' is not valid")
    save_run(folder / "12", "dataset=digits", "model=b", "mame.r=9")
    return folder


@pytest.fixture(scope="session")
def sweep_report(sweep, tmp_path_factory) -> Path:
    """The page of its report."""
    return report.make([sweep], tmp_path_factory.mktemp("out") / "new")
