"""Runs on clusters: submitit's local executor and two nodes of torchrun run for real, SLURM's settings compose."""

import subprocess
import sys

import pytest
from commands import ROOT, TINY, compose_config

from mame_lab.measure.result import Result

EVAL = str(ROOT / "eval.py")
FAST = [*TINY, "dataset.num_workers=0"]


@pytest.mark.slow
def test_submitit_runs_a_sweep(tmp_path):
    command = [sys.executable, EVAL, "-m", "hydra/launcher=submitit_local", *FAST, "mame.r=0,10"]
    subprocess.run([*command, f"hydra.sweep.dir={tmp_path}"], check=True, timeout=200)
    tokens = [Result.load(tmp_path / run / "result.json").merged.tokens for run in ("0", "1")]
    assert tokens == [[100, 100, 100], [90, 80, 80]]
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_two_nodes_of_torchrun_are_one_run(tmp_path):
    where = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", "--master_port=29471"]
    said = ["trainer=ddp", "trainer.num_nodes=2", "trainer.devices=1", *FAST, "trainer.limit_test_batches=1.0"]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *where, f"--node_rank={rank}", EVAL, *said, "mame.r=10",
             f"hydra.run.dir={tmp_path / 'run'}"],
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        assert [node.wait(timeout=200) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    result = Result.load(tmp_path / "run/result.json")
    assert result.conditions.processes == 2
    assert result.merged.top1.total == 359


def test_slurm_starts_a_process_for_each_gpu():
    said = ["hydra/launcher=slurm", "hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=4"]
    launcher = compose_config("train", said).hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (2, 4, 4)
    assert launcher._target_.endswith("SlurmLauncher")
