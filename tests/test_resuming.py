"""A run that is killed, whenever that is, ends as if it never had been."""

import errno
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from runs import ROOT, TINY

from mame_lab import MameLabError, resuming
from mame_lab.metrics_file import MetricsFile

RUN = [
    *(override for override in TINY if "max_epochs" not in override and "limit_train" not in override),
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=5",
    "trainer.log_every_n_steps=1",
    "trainer.checkpoint_every_n_steps=2",
    "dataset.num_workers=0",
    "mame.r=10",
    "+model.args.proj_drop_rate=0.2",
]

# train.py in a process that kills itself: before the update KILLED_AT, or in the middle of saving for the KILLED_ATth
# time.
KILLED = """
import os, runpy, signal, sys, torch
from mame_lab import resuming
when, at = sys.argv[1], int(sys.argv[2])
start, save, count = resuming.Reseed.on_train_batch_start, torch.save, 0

def between(self, trainer, *arguments):
    if trainer.global_step == at:
        os.kill(os.getpid(), signal.SIGKILL)
    start(self, trainer, *arguments)

def saving(checkpoint, file):
    global count
    count += 1
    if count == at:
        file.write(b"half"); file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(checkpoint, file)

if when == "between":
    resuming.Reseed.on_train_batch_start = between
else:
    torch.save = saving
sys.argv = [sys.argv[3], *sys.argv[4:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def last(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def metrics(folder):
    """All rows but the result's, by column: that one holds timings."""
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    return header, rows[:-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    command = [sys.executable, str(ROOT / "train.py"), *RUN, f"hydra.run.dir={folder}"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(("when", "at", "goes_on_after", "workers"), [("between", 9, 8, 1), ("saving", 5, 5, 0)])
def test_killed_and_resumed_is_as_never_killed(whole, entry_point, tmp_path, capsys, when, at, goes_on_after, workers):
    command = [sys.executable, "-c", KILLED, when, str(at), str(ROOT / "train.py"), *RUN, f"hydra.run.dir={tmp_path}"]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert not (tmp_path / "result.json").exists()
    assert (tmp_path / "checkpoints/last.ckpt.part").exists() == (when == "saving")
    assert last(tmp_path)["global_step"] == goes_on_after

    entry_point("train", tmp_path, *RUN, "resume=auto", f"dataset.num_workers={workers}")
    assert f"after {goes_on_after} updates" in " ".join(capsys.readouterr().out.split())
    for name, tensor in last(whole)["state_dict"].items():
        assert torch.equal(tensor, last(tmp_path)["state_dict"][name]), name
    assert metrics(tmp_path) == metrics(whole)
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, tmp_path)]
    for key in ("agreement", "kl", "feature_error"):
        assert results[0][key] == results[1][key]
    assert results[0]["merged"]["top1"] == results[1]["merged"]["top1"]
    assert results[0]["conditions"]["weights"] == results[1]["conditions"]["weights"]
    assert not list(tmp_path.rglob("*.part"))


def test_auto_starts_anew_where_nothing_is_saved_and_ends_at_once_where_all_is_done(entry_point, tmp_path, capsys):
    entry_point("train", tmp_path, *TINY, "resume=auto")
    before = last(tmp_path)["state_dict"]
    rows = metrics(tmp_path)
    entry_point("train", tmp_path, *TINY, "resume=auto")
    assert "Going on from" in capsys.readouterr().out
    assert all(torch.equal(tensor, last(tmp_path)["state_dict"][name]) for name, tensor in before.items())
    assert metrics(tmp_path) == rows
    with pytest.raises(MameLabError, match=r"resume: .* was made with mame.r=None, and this run has mame.r=20: give"):
        entry_point("train", tmp_path, *TINY, "resume=auto", "mame.r=20")
    with pytest.raises(MameLabError, match=r"^resume=no.ckpt does not exist"):
        entry_point("train", tmp_path, *TINY, "resume=no.ckpt")
    with pytest.raises(MameLabError, match=r"resume: .* with seed=0, and this run has seed=1"):
        entry_point("train", tmp_path, *TINY, f"resume={tmp_path / 'checkpoints/last.ckpt'}", "seed=1")


def test_a_run_from_before_a_key_was_there_goes_on(entry_point, tmp_path, capsys):
    entry_point("train", tmp_path, *TINY)
    path = tmp_path / "checkpoints/last.ckpt"
    content = torch.load(path)
    before = content["config"]
    del before["finetune"]["distill"], before["mame"]["prop_attn"], before["optim"]["betas"]
    torch.save(content, path)
    entry_point("train", tmp_path, *TINY, "resume=auto")
    assert "Going on from" in capsys.readouterr().out
    with pytest.raises(MameLabError, match=r"was made with mame.prop_attn=True, and this run has mame.prop_attn=False"):
        entry_point("train", tmp_path, *TINY, "resume=auto", "mame.prop_attn=false")


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path):
    io = resuming.WholeCheckpoints()
    path = tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)

    class Full(dict):
        def __reduce__(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(MameLabError, match=r"last.ckpt cannot be written \(.*No space left.*\): make room"):
        io.save_checkpoint(Full(step=2), path)
    assert io.load_checkpoint(path) == {"step": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_disk_that_is_really_full(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    (tmp_path / "last.ckpt.part").symlink_to("/dev/full")
    with pytest.raises(MameLabError, match=r"last.ckpt cannot be written \(.*\): make room"):
        resuming.WholeCheckpoints().save_checkpoint({"weights": torch.zeros(10)}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_the_newest_checkpoint_is_taken_also_one_of_a_preemption(tmp_path):
    config = {"model": {}, "mame": {}, "dataset": {}, "seed": 0}
    for name, step in (("checkpoints/last.ckpt", 5), ("hpc_ckpt_1.ckpt", 9), ("hpc_ckpt_2.ckpt", 7)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        torch.save({"config": config, "state_dict": {}, "global_step": step}, tmp_path / name)
    found = resuming.find(SimpleNamespace(resume="auto"), tmp_path, config)
    assert (found.path.name, found.step) == ("hpc_ckpt_1.ckpt", 9)


def test_metrics_go_on_where_the_checkpoint_is(tmp_path):
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    for step in range(4):
        first.log_metrics({"loss": step}, step)
    first.log_metrics({"top1": 0.5}, 3)
    with path.open("a") as file:
        file.write("1")  # the 12 of a step that a kill cut short
    again = MetricsFile(path, 3)
    again.log_metrics({"loss": 30}, 3)
    again.log_metrics({"top1": 0.5}, 3)
    rows = path.read_text().splitlines()
    assert rows == ["step,loss,top1", "0,0,", "1,1,", "2,2,", "3,30,", "3,,0.5"]
    MetricsFile(path)
    assert not path.exists()


@pytest.mark.parametrize(
    "settings",
    [
        ["trainer.val_check_interval=2"],
        ["trainer.check_val_every_n_epoch=2"],
        ["trainer.val_check_interval=7", "trainer.check_val_every_n_epoch=null"],
    ],
    ids=str,
)
@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_a_run_goes_on_whenever_it_validates(entry_point, stopped, tmp_path, checkpoint, settings):
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    entry_point("train", whole, *RUN, *settings)
    with stopped(at=11):
        entry_point("train", folder, *RUN, *settings)
    given = "auto" if checkpoint == "last" else folder / "checkpoints/best.ckpt"
    entry_point("train", folder, *RUN, *settings, f"resume={given}")
    assert all(torch.equal(last(folder)["state_dict"][name], t) for name, t in last(whole)["state_dict"].items())
    assert metrics(folder) == metrics(whole)
