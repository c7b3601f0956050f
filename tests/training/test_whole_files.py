"""Checkpoints and metrics.csv are whole at every moment."""

import errno
import os

import pytest
import torch

from mame_lab import MameLabError
from mame_lab.runs.metrics_file import MetricsFile
from mame_lab.training import resume


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
