"""Two processes give what one gives: the same accuracy, the same losses, and nothing left behind."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from commands import ROOT, TINY

from mame_lab import MameLabError

TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
FAST = [override for override in TINY if not override.startswith(("trainer.limit", "trainer.accelerator"))]
TRAINING = [
    *FAST,
    "trainer.limit_train_batches=10",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "trainer.precision=64-true",
    "trainer.log_every_n_steps=1",
    "dataset.augment=none",
    "dataset.num_workers=0",
    "optim.warmup_epochs=0",
]

# train.py in processes that end themselves before the sixth update.
KILLED = """
import os, runpy, sys
from mame_lab.training import resume
resume.PerStepSeed.on_train_batch_start = lambda self, trainer, *arguments: trainer.global_step == 5 and os._exit(1)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


# eval.py, in whose first process alone every schedule is solved as ward(r=[20,10,5]).
SOLVED = """
import runpy, sys
from mame_lab.solver import on_validation as targets
from mame_lab.merging import Ward
targets.solve = lambda *arguments: Ward(r=[20, 10, 5])
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(name, *overrides, code=()):
    """train.py or eval.py in a process of its own; returns what is left of its group after it has ended."""
    process = subprocess.Popen([sys.executable, *code, str(ROOT / f"{name}.py"), *overrides], start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return output


def result(folder):
    return json.loads((folder / "result.json").read_text())


def losses(folder, key="train/loss"):
    with (folder / "metrics.csv").open() as file:
        return [float(row[key]) for row in csv.DictReader(file) if row[key]]


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["classifier", "k-NN"])
def test_two_processes_evaluate_as_one(entry_point, tmp_path, judge):
    overrides = [*FAST, "mame.r=10", "dataset.num_workers=0", *["model.num_classes=0"] * (judge == "k-NN")]
    output = run("eval", *overrides, *TWO, f"hydra.run.dir={tmp_path / 'two'}")
    assert output.count("Merged against unmerged") == 1
    assert output.count("samples/s, all 2") == 1
    entry_point("eval", tmp_path / "one", *overrides, "trainer=cpu")
    one, two = result(tmp_path / "one"), result(tmp_path / "two")
    assert one["merged"]["top1"]["total"] == 359
    assert two["evaluated_by"] == judge
    for arm in ("merged", "unmerged"):
        for key in ("top1", "top5"):
            assert two[arm][key] == one[arm][key]
    assert two["agreement"] == one["agreement"]
    for key in ("kl", "feature_error"):
        assert two[key] == (one[key] and pytest.approx(one[key], rel=1e-4))
    assert (one["conditions"]["processes"], two["conditions"]["processes"]) == (1, 2)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {".hydra", "result.json", "metrics.csv", "eval.log"}


@pytest.mark.slow
def test_a_sweep_of_two_processes_trains_as_one_process_and_leaves_two_folders(entry_point, tmp_path):
    sweep = [*TRAINING, *TWO, "dataset.batch_size=8", "mame.r=0,10", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    run("train", "-m", *sweep)
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()) == ["0", "1"]
    for job, r in (("0", 0), ("1", 10)):
        entry_point("train", tmp_path / f"one{r}", *TRAINING, "trainer=cpu", "dataset.batch_size=16", f"mame.r={r}")
        folder = tmp_path / "sweep" / job
        assert len(losses(folder)) == 10
        assert losses(folder) == pytest.approx(losses(tmp_path / f"one{r}"), abs=1e-6)
        assert result(folder)["train_batch"] == 4
        files = {path.name for path in folder.iterdir()}
        assert files == {".hydra", "checkpoints", "result.json", "metrics.csv", "train.log"}


@pytest.mark.slow
def test_the_number_of_processes_may_change_between_epochs_alone(entry_point, tmp_path):
    sizes = ["dataset.batch_size=8", "trainer.checkpoint_every_n_steps=4", "resume=auto"]
    overrides = [*TRAINING, *TWO, *sizes, f"hydra.run.dir={tmp_path}"]
    command = [sys.executable, "-c", KILLED, str(ROOT / "train.py"), *overrides]
    assert subprocess.run(command, capture_output=True, timeout=200, start_new_session=True).returncode
    with pytest.raises(MameLabError, match="by 2 processes, and here are 1"):
        entry_point("train", tmp_path, *TRAINING, "trainer=cpu", *sizes)
    run("train", *overrides)
    assert len(losses(tmp_path)) == 10
    entry_point("train", tmp_path, *TRAINING, "trainer=cpu", *sizes, "trainer.max_epochs=2")
    assert len(losses(tmp_path)) == 20


@pytest.mark.slow
def test_two_processes_learn_from_a_teacher_as_one(entry_point, tmp_path):
    entry_point("train", tmp_path / "head", *TRAINING, "trainer=cpu", "mame=off")
    weights = f"model.weights={tmp_path / 'head/checkpoints/best.ckpt'}"
    taught = [*TRAINING, weights, "finetune=last_layer", "finetune.distill=0.5", "mame.r=20"]
    run("train", *taught, *TWO, "dataset.batch_size=8", f"hydra.run.dir={tmp_path / 'two'}")
    entry_point("train", tmp_path / "one", *taught, "trainer=cpu", "dataset.batch_size=16")
    assert len(losses(tmp_path / "two")) == 10
    for key in ("train/loss", "train/kl"):
        assert losses(tmp_path / "two", key) == pytest.approx(losses(tmp_path / "one", key), abs=1e-6)


@pytest.mark.slow
def test_two_processes_train_at_the_budgets_of_one(entry_point, tmp_path):
    overrides = [*TRAINING, "mame.r=10", "finetune.random_r=[0,5,20]"]
    run("train", *overrides, *TWO, "dataset.batch_size=8", f"hydra.run.dir={tmp_path / 'two'}")
    entry_point("train", tmp_path / "one", *overrides, "trainer=cpu", "dataset.batch_size=16")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
    assert result(tmp_path / "two")["merged"]["top1"] == result(tmp_path / "one")["merged"]["top1"]


@pytest.mark.slow
def test_a_failure_in_two_processes_ends_both(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *TRAINING, *TWO, "optim.lr=1e30", f"hydra.run.dir={tmp_path}"],
        capture_output=True, text=True, timeout=200, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "loss is not finite" in (tmp_path / "error.txt").read_text()
    assert done.stderr.count("error: optim.lr=1e+30") >= 1


@pytest.mark.slow
@pytest.mark.parametrize("finetune", ["full", "last_layer"])
def test_shared_out_weights_train_as_whole_ones(entry_point, tmp_path, finetune):
    overrides = [
        *(override for override in TRAINING if "precision" not in override),
        "trainer.gradient_clip_val=0.1",
        "optim.weight_decay=0.5",
        "dataset.batch_size=8",
        "mame.r=10",
        f"finetune={finetune}",
    ]
    sharded, whole = tmp_path / "sharded", tmp_path / "whole"
    output = run("train", *overrides, *TWO, "trainer=fsdp", f"hydra.run.dir={sharded}")
    run("train", *overrides, *TWO, f"hydra.run.dir={whole}")
    assert output.count("Merged against unmerged") == 1
    assert losses(sharded) == pytest.approx(losses(whole), abs=1e-5)
    for name in ("best", "last"):
        found, expected = (torch.load(f / f"checkpoints/{name}.ckpt", weights_only=True) for f in (sharded, whole))
        for key in ("state_dict", "optimizer_states"):
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-5)
    measured = [override for override in FAST if override.startswith("speed.")]
    checkpoint = f"ckpt={sharded / 'checkpoints/best.ckpt'}"
    entry_point("eval", tmp_path / "eval", checkpoint, *measured, "trainer=cpu", "trainer.limit_test_batches=2")
    for arm in ("merged", "unmerged"):
        assert result(sharded)[arm]["top1"] == result(tmp_path / "eval")[arm]["top1"]


@pytest.mark.slow
def test_the_loss_of_two_processes_is_the_mean_over_all_images(entry_point, tmp_path):
    overrides = [*TRAINING, "trainer.limit_train_batches=1", "trainer.limit_val_batches=1.0", "mame=off"]
    run("train", *overrides, *TWO, "dataset.batch_size=90", f"hydra.run.dir={tmp_path / 'two'}")
    entry_point("train", tmp_path / "one", *overrides, "trainer=cpu", "dataset.batch_size=180")
    assert losses(tmp_path / "two", "val/loss") == pytest.approx(losses(tmp_path / "one", "val/loss"), rel=1e-5)


def test_two_processes_merge_as_the_first_has_solved(entry_point, tmp_path):
    overrides = [*FAST, "dataset.num_workers=0", "trainer.limit_test_batches=2", "dataset.batch_size=8"]
    run("eval", *overrides, *TWO, "mame.flops=0.9", f"hydra.run.dir={tmp_path / 'two'}", code=["-c", SOLVED])
    entry_point("eval", tmp_path / "one", *overrides, "trainer=cpu", "dataset.batch_size=16", "mame.r=[20,10,5]")
    one, two = result(tmp_path / "one"), result(tmp_path / "two")
    assert two["feature_error"] == pytest.approx(one["feature_error"], rel=1e-4)
