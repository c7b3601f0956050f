"""Metrics are where they should be: in the CSV file always, and in W&B, read back as W&B itself reads them."""

import csv
import json
import os
import subprocess
import sys
from unittest import mock

import pytest
import wandb
from runs import TINY

from mame_lab.tracking import Csv, Wandb, log_result

CONFIG = {"optim": {"lr": 0.1, "betas": [0.9, 0.95]}, "mame": {"r": None}}


@pytest.fixture
def lonely(tmp_path):
    """The environment of a machine, without a terminal, where nobody has logged in to W&B; and a folder."""
    home = {name: str(tmp_path / "home") for name in ("HOME", "NETRC", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with mock.patch.dict(os.environ, {**inherited, **home, "TERM": "dumb"}, clear=True):
        yield tmp_path
        wandb.teardown()


def read_csv(folder):
    with open(folder / "metrics.csv") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def read_wandb(folder):
    (run,) = (folder / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "mame_lab.tracking"]


def test_csv_lands_in_the_folder_row_by_row(tmp_path, recwarn):
    (logger,) = loggers = Csv().build(tmp_path, CONFIG)
    logger.log_metrics({"train/loss": 2.0}, 3)
    assert read_csv(tmp_path) == [{"step": 3, "train/loss": 2.0}]
    log_result(loggers, {"test/top1": 0.5, "speed/speed_up": 1.5}, step=8)
    assert read_csv(tmp_path)[1:] == [{"step": 8, "test/top1": 0.5, "speed/speed_up": 1.5}]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    assert not recwarn.list


def test_wandb_offline_holds_metrics_result_and_configuration(lonely, caplog):
    os.environ["WANDB_MODE"] = "offline"
    first = Wandb(project="merging", tags=["a", "b"]).build(lonely / "first", CONFIG)
    for logger in first:
        logger.log_metrics({"val/top1": 0.25}, 3)
    log_result(first, {"test/top1": 0.5}, step=8)
    second = Wandb().build(lonely / "second", {})
    log_result(second, {"test/top1": 0.75})
    wandb.finish()
    run = read_wandb(lonely / "first")
    assert (run["project"], run["tags"], run["config"]) == ("merging", ["a", "b"], CONFIG)
    assert run["summary"].items() >= {"val/top1": 0.25, "test/top1": 0.5, "trainer/global_step": 8}.items()
    assert read_csv(lonely / "first") == [{"step": 3, "val/top1": 0.25}, {"step": 8, "test/top1": 0.5}]
    assert read_wandb(lonely / "second")["summary"]["test/top1"] == 0.75
    assert not warned(caplog)


def test_the_pictures_of_a_run_reach_wandb(lonely, entry_point):
    os.environ["WANDB_MODE"] = "offline"
    entry_point("eval", lonely, *TINY, "mame.r=10", "visualize=2", "logger=wandb")
    wandb.finish()
    summary = read_wandb(lonely)["summary"]
    (run,) = (lonely / "wandb").glob("offline-run-*")
    for name in ("merging", "tokens"):
        (file,) = summary[name]["filenames"]
        assert (run / "files" / file).read_bytes() == (lonely / f"{name}.png").read_bytes()
    assert summary["tokens/block_00"] == 90
    assert len(read_csv(lonely)) == 1


def test_without_a_login_wandb_goes_offline(lonely, caplog):
    os.environ["WANDB_LOGIN_TIMEOUT"] = "7"
    log_result(Wandb().build(lonely, {}), {"test/top1": 0.5})
    wandb.finish()
    (message,) = warned(caplog)
    assert "No API key" in message
    assert "\n" not in message
    assert read_wandb(lonely)["summary"]["test/top1"] == 0.5
    assert (os.environ["WANDB_INIT_TIMEOUT"], os.environ["WANDB_LOGIN_TIMEOUT"]) == ("20", "7")
