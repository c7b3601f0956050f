"""A run that is killed, whenever that is, continues exactly."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from commands import ROOT, TINY
from resumed import RUN, assert_ended_alike, last, metrics, result

from mame_lab import MameLabError

# train.py in a process that kills itself: before the update KILLED_AT, or in the middle of saving for the KILLED_ATth
# time.
KILLED = """
import os, runpy, signal, sys, torch
from mame_lab.training import resume
when, at = sys.argv[1], int(sys.argv[2])
start, save, count = resume.PerStepSeed.on_train_batch_start, torch.save, 0

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
    resume.PerStepSeed.on_train_batch_start = between
else:
    torch.save = saving
sys.argv = [sys.argv[3], *sys.argv[4:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


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


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "logged_every", "saved_every"), [(1, 10, 3), (2, 1, 1), (2, 10, 2), (3, 1, 1)])
def test_steps_are_counted_by_updates(entry_point, killed, tmp_path, accumulate, logged_every, saved_every):
    """In an epoch of 5 batches the last update is of fewer of them."""
    run = [*RUN, f"trainer.accumulate_grad_batches={accumulate}", f"trainer.log_every_n_steps={logged_every}"]
    run += [f"trainer.checkpoint_every_n_steps={saved_every}", "trainer.max_epochs=4", "resume=auto"]
    entry_point("train", tmp_path / "whole", *run)
    for batches in (4, 9, 3):
        killed(tmp_path / "killed", *run, nth=batches)
    entry_point("train", tmp_path / "killed", *run)
    assert_ended_alike(tmp_path / "killed", tmp_path / "whole")
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("given", ["last.ckpt", "best.ckpt", "auto"])
def test_going_on_in_another_folder_ends_alike(entry_point, killed, tmp_path, given):
    whole, folder, other = (tmp_path / name for name in ("whole", "killed", "other"))
    entry_point("train", whole, *RUN)
    killed(folder, *RUN, nth=13)
    checkpoints = folder.rename(tmp_path / "moved") / "checkpoints"
    folder = other if given != "auto" else tmp_path / "moved"
    entry_point("train", folder, *RUN, f"resume={given if given == 'auto' else checkpoints / given}")
    assert_ended_alike(folder, whole)
    (checkpoints / "best.ckpt").unlink()
    with pytest.raises(MameLabError, match=r"resume: .*last.ckpt goes on .* no best.ckpt beside it: put it there, or"):
        entry_point("train", other, *RUN, f"resume={checkpoints / 'last.ckpt'}")


def test_a_later_best_is_not_taken_for_that_of_an_earlier_checkpoint(entry_point, killed, tmp_path):
    killed(tmp_path / "one", *RUN, nth=13)
    checkpoints = tmp_path / "one/checkpoints"
    content = torch.load(checkpoints / "best.ckpt")
    torch.save(content | {"global_step": content["global_step"] + 100}, checkpoints / "best.ckpt")
    with pytest.raises(MameLabError, match=r"best.ckpt holds the best weights of a later step, for its run went on"):
        entry_point("train", tmp_path / "two", *RUN, f"resume={checkpoints / 'last.ckpt'}")
    assert not (tmp_path / "two/checkpoints").exists()


def test_other_processes_do_not_share_out_the_rest_of_an_epoch(entry_point, killed, tmp_path):
    killed(tmp_path, *RUN, "trainer.checkpoint_every_n_steps=1", nth=4)
    path = tmp_path / "checkpoints/last.ckpt"
    for within in (True, False):
        content = torch.load(path)
        assert content["processes"] == 1
        torch.save(content | {"processes": 2}, path)
        if within:
            with pytest.raises(
                MameLabError, match="in the middle of an epoch by 2 processes, and here are 1: go on with"
            ):
                entry_point("train", tmp_path, *RUN, "resume=auto")
            torch.save(content, path)
        entry_point("train", tmp_path, *RUN, "resume=auto")
    assert last(tmp_path)["global_step"] == 15


def test_an_evaluation_draws_as_after_training(entry_point, tmp_path):
    errors = set()
    for _ in range(2):
        entry_point("train", tmp_path, *TINY, "mame=drop", "mame.r=10", "resume=auto")
        errors.add(result(tmp_path)["feature_error"])
    assert len(errors) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["trainer.val_check_interval=2"],
        ["trainer.check_val_every_n_epoch=2"],
        ["trainer.val_check_interval=7", "trainer.check_val_every_n_epoch=null"],
    ],
    ids=str,
)
def test_a_run_is_resumed_whenever_it_validates(entry_point, stopped, tmp_path, settings):
    """From its last checkpoint, and in a copy of its folder from its best one."""
    whole, folder, copy = (tmp_path / name for name in ("whole", "stopped", "copy"))
    entry_point("train", whole, *RUN, *settings)
    with stopped(at=11):
        entry_point("train", folder, *RUN, *settings)
    shutil.copytree(folder, copy)
    entry_point("train", folder, *RUN, *settings, "resume=auto")
    entry_point("train", copy, *RUN, *settings, f"resume={copy / 'checkpoints/best.ckpt'}")
    for each in (folder, copy):
        assert all(torch.equal(last(each)["state_dict"][name], t) for name, t in last(whole)["state_dict"].items())
        assert metrics(each) == metrics(whole)
