"""The callbacks group in real fits: several at a time, and a resumed run stops early where it would have."""

import csv
import json

import pytest
import torch
from commands import TINY, typed
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor, RichModelSummary

from mame_lab.training.callbacks import CallbackSettings

RUN = [
    *(override for override in TINY if "max_epochs" not in override),
    "trainer.max_epochs=6",
    "optim.lr=1e-9",
    "callbacks.early_stopping=2",
    "trainer.log_every_n_steps=1",
]


@pytest.mark.parametrize(
    ("said", "settings"),
    [
        ([], CallbackSettings()),
        (["callbacks=early_stopping"], CallbackSettings(early_stopping=5)),
        (["callbacks.lr_monitor=true"], CallbackSettings(lr_monitor=True)),
        (
            ["callbacks=[early_stopping,lr_monitor]", "callbacks.min_delta=0.01"],
            CallbackSettings(early_stopping=5, min_delta=0.01, lr_monitor=True),
        ),
        (["callbacks=[device_stats,model_summary]"], CallbackSettings(device_stats=True, model_summary=2)),
    ],
)
def test_files_and_keys_choose_them(said, settings):
    assert typed("train", *said).callbacks == settings


def test_what_is_asked_for_is_built():
    assert CallbackSettings().build() == []
    stopping, *others = CallbackSettings(3, 0.1, lr_monitor=True, device_stats=True, model_summary=2).build()
    assert (stopping.monitor, stopping.mode, stopping.patience, stopping.min_delta) == ("val/top1", "max", 3, 0.1)
    assert [type(each) for each in others] == [LearningRateMonitor, DeviceStatsMonitor, RichModelSummary]


def last(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def epochs(folder):
    with (folder / "metrics.csv").open() as file:
        return [int(float(row["epoch"])) for row in csv.DictReader(file) if row.get("val/top1")]


def test_a_run_that_stops_early_is_resumed_exactly(entry_point, stopped, tmp_path):
    """At a rate that changes nothing, the first validation is the best one."""
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    entry_point("train", whole, *RUN, "callbacks.lr_monitor=true")
    assert epochs(whole) == [0, 1, 2]
    assert "lr-AdamW/pg1" in (whole / "metrics.csv").read_text().splitlines()[0]
    with stopped(at=5):
        entry_point("train", folder, *RUN)
    for _ in range(2):  # The second time there is nothing left to train.
        entry_point("train", folder, *RUN, "resume=auto")
        assert epochs(folder) == [0, 1, 2]
        assert all(torch.equal(last(folder)["state_dict"][name], t) for name, t in last(whole)["state_dict"].items())
    assert json.loads((folder / "result.json").read_text())["merged"]["top1"]
