"""A run that SLURM preempted: Lightning saves it in the middle of an update or a validation."""

from types import SimpleNamespace

import pytest
import torch
from commands import TINY
from resumed import RUN, assert_ended_alike, metrics, result

from mame_lab.training import resume


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


@pytest.mark.slow
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


def test_the_newest_checkpoint_is_taken_also_one_of_a_preemption(tmp_path):
    config = {"model": {}, "mame": {}, "dataset": {}, "seed": 0}
    for name, step in (("checkpoints/last.ckpt", 5), ("hpc_ckpt_1.ckpt", 9), ("hpc_ckpt_2.ckpt", 7)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        torch.save({"config": config, "state_dict": {}, "global_step": step}, tmp_path / name)
    found = resume.find_checkpoint(SimpleNamespace(resume="auto"), tmp_path, config)
    assert (found.path.name, found.step) == ("hpc_ckpt_1.ckpt", 9)
