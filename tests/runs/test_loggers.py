"""Metrics are where they should be: in the CSV file always, and in W&B, read back as W&B itself reads them."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import wandb
from commands import TINY, compose_config
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import WandbLogger

from mame_lab import MameLabError
from mame_lab.measure.conditions import Conditions
from mame_lab.measure.proportion import Proportion
from mame_lab.measure.result import ModelMeasurement, Result
from mame_lab.runs.loggers import TRADEOFF, Csv, TensorBoard, Wandb, log_pictures, log_result

CONFIG = {"optim": {"lr": 0.1, "betas": [0.9, 0.95]}, "mame": {"r": None}}
UNMERGED = ModelMeasurement(
    gflops=4, tokens=[9, 9], samples_per_s=80, latency_ms_p50=3, latency_ms_p95=4, scores={"top1": Proportion(3, 4)}
)
RESULT = Result(
    merged=replace(UNMERGED, gflops=2, tokens=[9, 6], samples_per_s=120, scores={"top1": Proportion(2, 4)}),
    unmerged=UNMERGED,
    evaluated_by="classifier",
    feature_error=0.1,
    speedup=1.5,
    conditions=Conditions(
        device="CPU", dtype="float32", batch=4, rounds=3, threads=1, seed=0, weights="0", versions={}, commit=None,
        date="",
    ),
)  # fmt: skip
SUMMARY = {"test/top1": 0.5, "speed/samples_per_s": 120, "speed/speedup": 1.5, "cost/gflops": 2, "tokens/block_01": 6}


@pytest.fixture
def lonely(tmp_path):
    """The environment of a machine, without a terminal, where nobody has logged in to W&B; and a folder."""
    home = {name: str(tmp_path / "home") for name in ("HOME", "NETRC", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with mock.patch.dict(os.environ, {**inherited, **home, "TERM": "dumb"}, clear=True):
        yield tmp_path
        wandb.teardown()


@pytest.fixture
def offline(lonely):
    os.environ["WANDB_MODE"] = "offline"
    return lonely


@pytest.fixture
def in_sweep():
    """This process is a job of a sweep, or a single run; the overrides tell which."""

    def enter(mode, *overrides):
        cfg = compose_config("eval", ["hydra.sweep.dir=outputs/merge-schedules"])
        cfg.hydra.mode = mode
        cfg.hydra.overrides.task = list(overrides)
        HydraConfig.instance().set_config(cfg)

    yield enter
    HydraConfig.instance().cfg = None


def read_csv(folder):
    with open(folder / "metrics.csv") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def run_folder(folder):
    (run,) = (folder / "wandb").glob("offline-run-*")
    return run


def inspect(folder, *flags):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *flags, "--json", str(run_folder(folder))]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def read_wandb(folder):
    return json.loads(inspect(folder, "--summary"))


def records(folder, kind):
    return [line[kind] for line in map(json.loads, inspect(folder).splitlines()) if line["type"] == kind]


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "mame_lab.runs.loggers"]


def test_csv_lands_in_the_folder_row_by_row(tmp_path, recwarn):
    (logger,) = loggers = Csv().build(tmp_path, CONFIG)
    logger.log_metrics({"train/loss": 2.0}, 3)
    assert read_csv(tmp_path) == [{"step": 3, "train/loss": 2.0}]
    log_result(loggers, RESULT, step=8)
    assert read_csv(tmp_path)[1:] == [{"step": 8, **RESULT.metrics()}]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    assert not recwarn.list


def test_wandb_offline_holds_metrics_result_and_configuration(offline, caplog):
    first = Wandb(project="merging", tags=["a", "b"]).build(offline / "first", CONFIG)
    for logger in first:
        logger.log_metrics({"val/top1": 0.25}, 3)
    log_result(first, RESULT, step=8)
    second = Wandb().build(offline / "second", {})
    log_result(second, replace(RESULT, speedup=1.25))
    wandb.finish()
    run = read_wandb(offline / "first")
    assert (run["project"], run["tags"], run["config"]["optim"]) == ("merging", ["a", "b"], CONFIG["optim"])
    assert run["summary"].items() >= {"val/top1": 0.25, "trainer/global_step": 8, **SUMMARY}.items()
    assert read_csv(offline / "first") == [{"step": 3, "val/top1": 0.25}, {"step": 8, **RESULT.metrics()}]
    assert read_wandb(offline / "second")["summary"]["speed/speedup"] == 1.25
    assert not warned(caplog)

    (table,) = run_folder(offline / "first").glob("files/media/table/*/*.json")
    assert json.loads(table.read_text())["columns"] == ["model", "samples/s", "top-1"]
    assert json.loads(table.read_text())["data"] == [["merged", 120, 0.5], ["unmerged", 80, 0.75]]
    said = {
        key: value for each in records(offline / "first", "config") for key, value in each.get("update", {}).items()
    }
    chart = said[f"_wandb.visualize.{TRADEOFF}"]["panel_config"]
    assert (chart["panelDefId"], chart["fieldSettings"]) == ("wandb/scatter/v0", {"x": "samples/s", "y": "top-1"})


def test_a_sweep_names_groups_and_tags(offline, in_sweep):
    path = "dataset.root=" + "x" * 60
    in_sweep(RunMode.MULTIRUN, "mame.r=8", path)
    Wandb(group="mine", tags=["x", "x"]).build(offline / "said", {})
    Wandb().build(offline / "default", {})
    in_sweep(RunMode.RUN, "mame.r=8")
    Wandb().build(offline / "single", {})
    wandb.finish()
    said, default, single = (records(offline / name, "run")[0] for name in ("said", "default", "single"))
    assert (said["run_group"], said["tags"]) == ("mine", ["x"])
    assert (default["run_group"], default["tags"]) == ("merge-schedules", ["mame.r=8", path[:61] + "..."])
    assert not {"run_group", "tags"} & single.keys()


def test_without_an_accuracy_there_is_no_scatter():
    logger = mock.Mock(spec=WandbLogger)
    unknown = {name: replace(getattr(RESULT, name), scores={}) for name in ("merged", "unmerged")}
    log_result([logger], replace(RESULT, **unknown), step=3)
    logger.log_metrics.assert_called_once_with(replace(RESULT, **unknown).metrics(), 3)


def test_the_best_checkpoint_is_an_artifact(offline, entry_point):
    entry_point("train", offline, *TINY, "logger=wandb", "logger.checkpoints=true", "mame.r=10")
    wandb.finish()
    models = [artifact for artifact in records(offline, "artifact") if artifact["type"] == "model"]
    (file,) = models[0]["manifest"]["contents"]
    assert len(models) == 1
    assert "best" in models[0]["aliases"]
    assert int(file["size"]) == (offline / "checkpoints/best.ckpt").stat().st_size


def test_the_pictures_of_a_run_reach_wandb(offline, entry_point):
    entry_point("eval", offline, *TINY, "mame.r=10", "visualize=2", "logger=wandb")
    wandb.finish()
    summary = read_wandb(offline)["summary"]
    for name in ("merging", "tokens"):
        (file,) = summary[name]["filenames"]
        assert (run_folder(offline) / "files" / file).read_bytes() == (offline / f"{name}.png").read_bytes()
    assert summary["tokens/block_00"] == 90
    assert len(read_csv(offline)) == 1
    assert not [artifact for artifact in records(offline, "artifact") if artifact["type"] == "model"]


def test_without_a_login_wandb_goes_offline(lonely, caplog):
    os.environ["WANDB_LOGIN_TIMEOUT"] = "7"
    log_result(Wandb().build(lonely, {}), RESULT)
    wandb.finish()
    (message,) = warned(caplog)
    assert "No API key" in message
    assert "\n" not in message
    assert read_wandb(lonely)["summary"]["test/top1"] == 0.5
    assert (os.environ["WANDB_INIT_TIMEOUT"], os.environ["WANDB_LOGIN_TIMEOUT"]) == ("20", "7")
    assert os.environ["WANDB_FINISH_TIMEOUT"] == "300"


@pytest.mark.slow
def test_without_a_network_wandb_goes_offline(lonely, caplog):
    os.environ |= {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "1"}
    log_result(Wandb().build(lonely, {}), RESULT)
    wandb.finish()
    assert warned(caplog)[0].startswith("W&B goes offline: ")
    assert read_wandb(lonely)["summary"]["test/top1"] == 0.5


def test_what_fails_in_wandb_is_a_warning(offline, caplog, monkeypatch):
    """Its process has died: to log, and to end the run for the next one of a sweep, fails."""
    loggers = Wandb().build(offline, {})
    dead = mock.Mock(side_effect=BrokenPipeError("W&B is gone"))
    with monkeypatch.context() as broken:
        broken.setattr(wandb.Run, "log", dead)
        broken.setattr(wandb, "finish", dead)
        log_result(loggers, RESULT, step=8)
        broken.setattr(wandb, "init", dead)
        wandb.run.finish()
        left = Wandb().build(offline / "next", {})
    assert [type(logger) for logger in left] == [type(loggers[0])]
    assert set(warned(caplog)) == {f"W&B{what}: W&B is gone" for what in ("", " goes offline", " is left out")}
    assert read_csv(offline) == [{"step": 8, **RESULT.metrics()}]


def test_a_run_that_goes_on_is_the_same_run_of_wandb(lonely):
    os.environ["WANDB_MODE"] = "offline"
    ids = [Wandb().build(lonely, {}, step)[1].experiment.id for step in (0, 5, 0)]
    assert ids[0] == ids[1] != ids[2]


@pytest.fixture
def written(monkeypatch):
    """Stands for TensorBoard's writer, which may not be installed: lists what it is given."""
    calls = []

    class SummaryWriter:
        def __init__(self, **options):
            calls.append(("start", options))

        def __getattr__(self, name):
            return lambda *arguments, **options: calls.append((name, *arguments, options))

    monkeypatch.setitem(sys.modules, "tensorboardX", mock.Mock(SummaryWriter=SummaryWriter))
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", True)
    return calls


def test_tensorboard_holds_the_result_and_the_pictures(written, tmp_path):
    from matplotlib.image import imsave

    loggers = TensorBoard().build(tmp_path, CONFIG, step=5)
    log_result(loggers, RESULT, step=8)
    imsave(tmp_path / "merging.png", np.zeros((4, 6, 3)))
    log_pictures(loggers, {"merging": tmp_path / "merging.png"})
    assert written[0] == ("start", {"log_dir": str(tmp_path / "tensorboard"), "purge_step": 5})
    scalars = {call[1]: call[2:4] for call in written if call[0] == "add_scalar"}
    assert scalars == {name: (value, 8) for name, value in RESULT.metrics().items()}
    ((_, name, image, options),) = [call for call in written if call[0] == "add_image"]
    assert (name, image.shape, options) == ("merging", (4, 6, 4), {"dataformats": "HWC"})
    assert read_csv(tmp_path) == [{"step": 8, **RESULT.metrics()}]


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch):
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{name}", False)
    with pytest.raises(MameLabError, match=r"^logger=tensorboard needs more: pip install 'mame_lab\[tensorboard\]'$"):
        TensorBoard().build(tmp_path, CONFIG)
