"""train.py and eval.py as the shell meets them: help, completion, and a wrong input in one line."""

import os
import subprocess
import sys

import pytest
from commands import ROOT, TINY, load
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from mame_lab.runs import cli, cpu


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """Runs `python NAME.py ARGUMENTS` in this process and a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(cpu, "configure", lambda: None)

    def run(name, *arguments):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"{name}.py", f"--config-path={ROOT / 'conf'}", *arguments])
        cli.run(load(name).main)

    yield run
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("mame.tua=1", "error: mame.tua: Key 'tua' not in"),
        ("mame.r=80", "error: mame.r=80 is too large for block 0"),
        ("dataset.root=/photos (1)", "error: dataset.root=/photos (1) cannot be parsed"),
        ("hydra.run.dir=", "error: hydra.run.dir= is empty"),
        ("hydra.run.dir=''", "error: hydra.run.dir= is empty"),
        ("model.weights=/x/${y}", "error: model.weights: Interpolation key 'y' not found"),
        ("mame=null", "error: mame, model, dataset, ... take the name of a file of conf/GROUP"),
        ("mame.batch=packed", "error: mame.batch is called mame.batching now: write that"),
        ("finetune.budgets=[4]", "error: finetune.budgets is called finetune.random_r now: write that"),
        ("hydra.run.dir=/dev/null/run", "error: /dev/null/run: Not a directory: make room or give another hydra.run.d"),
    ],
)
def test_a_wrong_input_is_one_line(shell, capsys, override, line):
    with pytest.raises(SystemExit) as ended:
        shell("train", override, *TINY)
    assert str(ended.value.code).startswith(line)
    assert "\n" not in ended.value.code
    assert capsys.readouterr().out == ""


def command(*arguments, cwd, **options):
    line = [sys.executable, *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=250, **options)


def test_a_wrong_input_is_a_failure_of_the_command(tmp_path):
    done = command(str(ROOT / "train.py"), "mame.tua=1", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: mame.tua: Key 'tua' not in")


HELP = """
import atexit, runpy, sys
sys.argv = [PATH, "--help"]
atexit.register(lambda: print("torch" in sys.modules))
runpy.run_path(PATH, run_name="__main__")
"""


def test_help_shows_the_groups_of_the_user_and_needs_no_torch(tmp_path):
    done = command("-c", f"PATH = {str(ROOT / 'train.py')!r}{HELP}", cwd=tmp_path)
    assert "Groups: choose one file of conf/" in done.stdout
    assert "\nmame: atc, drop, evit, " in done.stdout
    assert "schema" not in done.stdout
    assert "hydra/" not in done.stdout
    assert done.stdout.rstrip().endswith("False")


def test_the_configuration_of_a_job_is_printed(shell, capsys):
    shell("train", "--cfg", "job", "mame.r=8")
    lines = capsys.readouterr().out.splitlines()
    groups = [line.partition(":")[0] for line in lines if line and not line.startswith((" ", "-"))]
    assert groups[:3] == ["model", "mame", "dataset"]
    assert {"finetune", "optim", "trainer", "callbacks", "logger", "speed"} < set(groups)
    assert "hydra" not in groups
    assert "  r: 8" in lines


def test_tab_completion_is_installed(shell, capsys):
    shell("train", "-sc", "install=bash")
    assert "complete -o nospace -o default -F hydra_bash_completion python" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("mo", "model="),
        ("model=vit_", "model=vit_mini"),
        ("callbacks=", "callbacks=early_stopping"),
        ("mame.r", "mame.r="),
    ],
)
def test_tab_completes_groups_choices_and_keys(shell, capsys, monkeypatch, line, completed):
    monkeypatch.setenv("COMP_LINE", f"train.py {line}")
    monkeypatch.setenv("COMP_POINT", str(len(os.environ["COMP_LINE"])))
    shell("train", "-sc", "query=bash")
    assert completed in capsys.readouterr().out.split()
