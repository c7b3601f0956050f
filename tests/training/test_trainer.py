"""The Trainer that the settings build: its checkpoints, its errors and its quiet."""

import logging
import subprocess
import sys
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from mame_lab.errors import MameLabError
from mame_lab.training.trainer import TrainerSettings

QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


class Scripted(LightningModule):
    """Its validation accuracy in each epoch is given."""

    def __init__(self, top1):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.top1 = top1

    def training_step(self, batch):
        self.log("train/loss", 2.5, prog_bar=True)
        return self.weight.sum()

    def validation_step(self, batch):
        self.log("val/top1", self.top1[self.current_epoch], prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(folder, top1, **settings):
    trainer = TrainerSettings(len(top1), **settings).build(folder, [])
    data = DataLoader(torch.zeros(2))
    trainer.fit(Scripted(top1), data, data)
    return trainer


def epochs(folder):
    paths = (folder / "checkpoints").iterdir()
    return {path.name: torch.load(path, weights_only=True)["epoch"] for path in paths}


@pytest.mark.parametrize("top1", [[0.5, 0.9, 0.7], [0.2, 0.9, 0.9], [0.1, 0.2, 0.3]])
def test_best_is_the_best_and_last_the_last(tmp_path, top1):
    trainer = fit(tmp_path, top1, **QUIET)
    assert epochs(tmp_path) == {"best.ckpt": top1.index(max(top1)), "last.ckpt": 2}
    assert trainer.checkpoint_callback.best_model_path == str(tmp_path / "checkpoints" / "best.ckpt")


def test_a_new_fit_in_a_folder_keeps_the_names(tmp_path):
    fit(tmp_path, [0.9, 0.5], **QUIET)
    with pytest.warns(UserWarning, match="is not empty"):
        fit(tmp_path, [0.5, 0.6, 0.7], **QUIET)
    assert epochs(tmp_path) == {"best.ckpt": 2, "last.ckpt": 2}


def test_a_fit_is_quiet_and_shows_a_line_an_epoch(tmp_path, recwarn, capfd, caplog):
    logging.getLogger("lightning.pytorch").addHandler(caplog.handler)
    fit(tmp_path, [0.5, 0.75], accelerator="cpu", devices=1)
    logging.getLogger("lightning.pytorch").removeHandler(caplog.handler)
    warnings.warn("a real one", stacklevel=1)
    assert [str(warning.message) for warning in recwarn] == ["a real one"]
    assert not caplog.records
    out, err = capfd.readouterr()
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert [line[-4:] for line in lines] == [["train/loss:", "2.500", "val/top1:", top1] for top1 in ("0.500", "0.750")]
    assert not err


def test_without_a_progress_bar_nothing_is_shown(tmp_path, capfd):
    fit(tmp_path, [0.5], **QUIET)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"accelerator": "abacus"}, "abacus"),
        ({"precision": "7-bit"}, "7-bit"),
        ({"strategy": "by_hand", "accelerator": "cpu"}, "by_hand"),
        ({"limit_train_batches": 1.5, "accelerator": "cpu"}, "limit_train_batches"),
        ({"limit_val_batches": "x", "accelerator": "cpu"}, "'str'"),
        ({"max_epochs": 0}, "trainer.max_epochs=0"),
        ({"checkpoint_every_n_steps": 0}, "trainer.checkpoint_every_n_steps=0"),
        ({"strategy": "fsdp", "accelerator": "cpu", "precision": "64-true"}, "trainer.precision=64-true"),
        ({"accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches=0"),
    ],
)
def test_settings_that_cannot_run_are_one_line(tmp_path, settings, said):
    with pytest.raises(MameLabError) as caught:
        TrainerSettings(**settings).build(tmp_path, [])
    message = str(caught.value)
    assert message.startswith("trainer")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("accelerator", "tpu"),
        ("accelerator", "abacus"),
        ("precision", "transformer-engine"),
        ("precision", "7-bit"),
        ("devices", 0),
        ("devices", -1),
        ("devices", "all"),
        ("num_nodes", 0),
        ("limit_test_batches", "x"),
        ("val_check_interval", 1.5),
        ("val_check_interval", 0),
        ("check_val_every_n_epoch", 0),
    ],
)
def test_a_setting_that_cannot_run_is_named(tmp_path, key, value):
    with pytest.raises(MameLabError, match=rf"^(trainer.accelerator=cpu )?trainer\.{key}={value}: [^\n]*$"):
        TrainerSettings(**({"accelerator": "cpu"} | {key: value})).build(tmp_path, [])


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook", "deepspeed_stage_2", "fsdp_cpu_offload"])
def test_a_strategy_that_does_not_work_here_says_which_does(strategy):
    with pytest.raises(MameLabError, match=rf"^trainer.strategy={strategy} does not work here: take trainer.strat"):
        TrainerSettings(strategy=strategy)


@pytest.mark.parametrize(
    "settings", [{"val_check_interval": 3}, {"limit_train_batches": 0.1}, {"limit_val_batches": 0.1}], ids=str
)
def test_a_setting_that_does_not_fit_the_data_is_named(tmp_path, settings):
    ((key, value),) = settings.items()
    with pytest.raises(MameLabError, match=rf"^trainer\.{key}={value}: "), TrainerSettings(**settings).explained():
        fit(tmp_path, [0.5], **settings, **QUIET)


def test_an_error_that_is_not_about_the_settings_stays():
    settings = TrainerSettings(devices=2, precision="bf16-true")
    with pytest.raises(ValueError, match=r"^devices$"), settings.explained():
        raise ValueError("devices")


@pytest.mark.parametrize(
    ("settings", "best"),
    [
        ({"check_val_every_n_epoch": 2}, 1),
        ({"val_check_interval": 1}, 1),
        ({"val_check_interval": 3, "check_val_every_n_epoch": None}, 1),
        ({"val_check_interval": 5, "check_val_every_n_epoch": None}, 2),
        ({"check_val_every_n_epoch": 4}, None),
    ],
    ids=str,
)
def test_best_is_the_best_that_was_validated_and_last_the_last(tmp_path, settings, best):
    fit(tmp_path, [0.4, 0.6, 0.5], **settings, **QUIET)
    assert epochs(tmp_path) == {"last.ckpt": 2} | ({} if best is None else {"best.ckpt": best})


def test_settings_are_read_without_torch():
    code = (
        "import sys, mame_lab.training.trainer, mame_lab.runs.loggers, mame_lab.training.freeze, mame_lab.tasks.optim\n"
        "assert not {'torch', 'lightning', 'wandb', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_shards_is_measured_unsharded():
    assert [TrainerSettings(strategy=strategy).shards for strategy in ("auto", "ddp", "fsdp")] == [False, False, True]
    settings = TrainerSettings(strategy="fsdp", devices=2)
    assert settings.unsharded() == TrainerSettings(strategy="ddp", devices=2)
