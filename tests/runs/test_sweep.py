"""A sweep ends with all that could run, with the reasons of what could not, and with a report."""

import subprocess
import sys

import pytest
from commands import ROOT, TINY

from mame_lab.measure.result import Result
from mame_lab.runs import sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of which the second value fails when it runs, and the third cannot be composed."""
    folder = tmp_path_factory.mktemp("sweep")
    values = "mame.prop_attn=true,7x", "mame.r=10,500"
    command = [sys.executable, str(ROOT / "eval.py"), "-m", *TINY, *values, f"hydra.sweep.dir={folder}"]
    return folder, subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_a_wrong_value_fails_alone_and_says_why(swept):
    folder, done = swept
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"0", "1", "left_out_0", "left_out_1"}
    assert Result.load(folder / "0/result.json").merged.tokens == [90, 80, 80]
    assert not (folder / "0/error.txt").exists()
    assert (folder / "1/error.txt").read_text().startswith("mame.r=500 is too large for block 0")
    for name, r in (("left_out_0", 10), ("left_out_1", 500)):
        assert "mame.prop_attn: Value '7x'" in (folder / name / "error.txt").read_text()
        assert f"- mame.r={r}\n" in (folder / name / ".hydra/overrides.yaml").read_text()
        assert "- mame.prop_attn=7x\n" in (folder / name / ".hydra/overrides.yaml").read_text()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: 3 of 4 runs failed: see {folder}"


def test_a_report_is_made(swept):
    folder, _ = swept
    assert (folder / "report.html").stat().st_size > 10_000
    assert (folder / "report.png").stat().st_size > 10_000
    text = (folder / "report.html").read_text()
    assert "mame.r=500 is too large for block 0" in text
    assert "mame.prop_attn: Value" in text


def test_the_reason_of_an_earlier_failure_goes(entry_point, tmp_path, monkeypatch):
    from commands import compose_config
    from hydra.core.hydra_config import HydraConfig

    from mame_lab.runs import cli

    cfg = compose_config("eval", [])
    cfg.hydra.runtime.output_dir = str(tmp_path)
    HydraConfig.instance().set_config(cfg)
    (tmp_path / "error.txt").write_text("old")
    argv = list(sys.argv)
    assert cli.run_job(lambda cfg: {"done": 1.0, "said": sys.argv[-1]}, cfg)["done"] == 1
    assert not (tmp_path / "error.txt").exists()
    with pytest.raises(ZeroDivisionError):
        cli.run_job(lambda cfg: 1 / 0, cfg)
    assert (tmp_path / "error.txt").read_text() == "ZeroDivisionError: division by zero\n"
    assert sys.argv == argv


def test_sweepers_are_found_by_hydra():
    from hydra.core.plugins import Plugins

    sweep.register(sweep.Sweep)
    found = Plugins.instance()._instantiate({"_target_": f"{sweep.PLUGINS}.Sweep", "max_batch_size": 3})
    assert (type(found), found.max_batch_size) == (sweep.Sweep, 3)
