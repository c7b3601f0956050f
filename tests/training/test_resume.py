"""A run that is killed, whenever that is, ends as if it never had been."""

import errno
import json
import os
import signal
import subprocess
import sys
from functools import wraps
from types import SimpleNamespace

import pytest
import torch
from commands import ROOT, TINY

from mame_lab import MameLabError
from mame_lab.runs.metrics_file import MetricsFile
from mame_lab.tasks.classification import Classification
from mame_lab.tasks.optim import lr_factor
from mame_lab.training import resume

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


def last(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


def metrics(folder):
    """All rows but the result's, by column: that one holds timings."""
    header, *rows = (folder / "metrics.csv").read_text().splitlines()
    return header, rows[:-1]


def result(folder):
    return json.loads((folder / "result.json").read_text())


def assert_ended_alike(folder, whole):
    for name in ("best", "last"):
        states = [torch.load(each / f"checkpoints/{name}.ckpt", weights_only=True) for each in (folder, whole)]
        for key, tensor in states[1]["state_dict"].items():
            assert torch.equal(states[0]["state_dict"][key], tensor), key
        for key in ("global_step", "lr_schedulers"):
            assert states[0][key] == states[1][key]
    assert result(folder)["merged"]["top1"] == result(whole)["merged"]["top1"]


@pytest.fixture
def killed(entry_point, monkeypatch):
    """Runs train.py until a method of its task is called for the nth time, where it dies, `dying` first."""

    def run(folder, *overrides, nth, method="training_step", dying=lambda trainer: None):
        real, calls = getattr(Classification, method), []

        @wraps(real)
        def called(self, batch):
            calls.append(batch)
            if len(calls) == nth:
                dying(self.trainer)
                raise MameLabError("killed")
            return real(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(Classification, method, called)
            with pytest.raises(MameLabError, match="killed"):
                entry_point("train", folder, *overrides)

    return run


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


def preempt(trainer):
    """What Lightning does on SLURM's signal."""
    trainer.save_checkpoint(trainer._checkpoint_connector.hpc_save_path(trainer.default_root_dir))


@pytest.fixture
def slurm(monkeypatch):
    """Lightning believes to be in a job of SLURM."""
    for name in ("NTASKS", "JOB_ID"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")


@pytest.mark.parametrize(("method", "nth"), [("training_step", 9), ("training_step", 10), ("validation_step", 4)])
def test_a_preempted_run_goes_on_within_an_update_and_a_validation(
    entry_point, killed, slurm, tmp_path, capsys, method, nth
):
    run = [*RUN, "trainer.accumulate_grad_batches=2", "trainer.checkpoint_every_n_steps=null", "resume=auto"]
    run += ["trainer.limit_val_batches=2", "dataset.batch_size=16"]
    entry_point("train", tmp_path / "whole", *run)
    folder = tmp_path / "killed"
    killed(folder, *run, method=method, nth=nth, dying=preempt)
    entry_point("train", folder, *run)
    assert "hpc_ckpt_1.ckpt,after" in "".join(capsys.readouterr().out.split())
    assert_ended_alike(folder, tmp_path / "whole")
    assert metrics(folder) == metrics(tmp_path / "whole")

    preempted = torch.load(folder / "hpc_ckpt_1.ckpt")
    del preempted["config"]  # As that of an evaluation.
    torch.save(preempted | {"global_step": 99}, folder / "hpc_ckpt_2.ckpt")
    entry_point("train", folder, *run)
    assert "last.ckpt,after" in "".join(capsys.readouterr().out.split())
    assert_ended_alike(folder, tmp_path / "whole")
    entry_point("train", folder, *run, "resume=null")
    assert metrics(folder) == metrics(tmp_path / "whole")
    entry_point("eval", folder, *TINY[5:], f"ckpt={folder / 'checkpoints/best.ckpt'}")
    assert result(folder)["conditions"]["weights"] == result(tmp_path / "whole")["conditions"]["weights"]


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


def rates(folder):
    header, rows = metrics(folder)
    column = header.split(",").index("train/lr")
    return [float(row.split(",")[column]) for row in rows if row.split(",")[column]]


@pytest.mark.parametrize("nth", [3, None], ids=["within an epoch", "done"])
def test_a_run_may_go_on_for_longer(entry_point, killed, tmp_path, nth):
    run = [each for each in RUN if "max_epochs" not in each]
    short, long = ([*run, f"trainer.max_epochs={epochs}", "resume=auto"] for epochs in (1, 3))
    if nth:
        killed(tmp_path, *short, nth=nth)
    else:
        entry_point("train", tmp_path, *short)
    done = len(rates(tmp_path)) if nth is None else 2
    entry_point("train", tmp_path, *long)
    assert last(tmp_path)["epoch"] == 2
    assert last(tmp_path)["config"]["trainer"]["max_epochs"] == 3
    expected = [1e-3 * lr_factor(step, 15, 5, 0) for step in range(15)]
    assert rates(tmp_path)[done:] == pytest.approx(expected[done:])
    assert [row.split(",")[0] for row in metrics(tmp_path)[1]].count("14") == 2  # of training and validation
    entry_point("train", tmp_path, *long)
    assert len(rates(tmp_path)) == 15
    with pytest.raises(MameLabError, match=r"trainer.max_epochs=3, and this run has trainer.max_epochs=1: .* or more"):
        entry_point("train", tmp_path, *short)


def test_a_target_goes_on_with_what_met_it_and_with_no_other(entry_point, tmp_path):
    run = [*TINY, "mame.flops=0.8", "resume=auto"]
    entry_point("train", tmp_path, *run)
    path = tmp_path / "checkpoints/last.ckpt"
    content = torch.load(path)
    solved = content["config"]["mame"]["r"]
    refused = [
        (["mame.flops=0.6"], "mame.flops=0.8, and this run has mame.flops=0.6"),
        (["mame=tome"], "mame.method=ward, and this run has mame.method=tome"),
        (["mame.schedule=linear"], "mame.schedule=None, and this run has mame.schedule=linear"),
        (["mame.flops=null", "mame.r=10"], r"mame.r=\[.*\], and this run has mame.r=10"),
    ]
    for others, message in refused:
        with pytest.raises(MameLabError, match=message):
            entry_point("train", tmp_path, *run, *others)
    given_back = ["mame.flops=null", f"mame.r={solved}"]
    for others in ([], given_back, []):
        entry_point("train", tmp_path, *run, *others)
        assert last(tmp_path)["config"]["mame"]["r"] == solved
    del content["config"]["asked"]
    torch.save(content, path)
    entry_point("train", tmp_path, *run)
    torch.save(content, path)
    with pytest.raises(MameLabError, match=r"mame.method=ward, and this run has mame.method=tome"):
        entry_point("train", tmp_path, *run, "mame=tome")


def test_what_does_not_shape_the_result_is_free(entry_point, tmp_path):
    entry_point("train", tmp_path, *TINY)
    free = ["trainer.checkpoint_every_n_steps=1", "trainer.log_every_n_steps=1", "speed.max_rounds=1"]
    free += ["trainer.limit_test_batches=1"]
    entry_point("train", tmp_path, *TINY, "resume=auto", *free)
    for fixed in ("compile=true", "optim.lr=1", "finetune=head", "trainer.precision=64-true", "dataset.batch_size=2"):
        with pytest.raises(MameLabError, match=r"resume: .* and this run has .*: give what it had, or start anew"):
            entry_point("train", tmp_path, *TINY, "resume=auto", fixed)


def test_an_evaluation_draws_as_after_training(entry_point, tmp_path):
    errors = set()
    for _ in range(2):
        entry_point("train", tmp_path, *TINY, "mame=drop", "mame.r=10", "resume=auto")
        errors.add(result(tmp_path)["feature_error"])
    assert len(errors) == 1


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
    io = resume.AtomicCheckpointIO()
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
        resume.AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(10)}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_the_newest_checkpoint_is_taken_also_one_of_a_preemption(tmp_path):
    config = {"model": {}, "mame": {}, "dataset": {}, "seed": 0}
    for name, step in (("checkpoints/last.ckpt", 5), ("hpc_ckpt_1.ckpt", 9), ("hpc_ckpt_2.ckpt", 7)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        torch.save({"config": config, "state_dict": {}, "global_step": step}, tmp_path / name)
    found = resume.find_checkpoint(SimpleNamespace(resume="auto"), tmp_path, config)
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
