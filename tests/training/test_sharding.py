"""Weights that are shared out stop and go on as whole ones. That two processes train so: see test_distributed."""

import pytest
import torch
from commands import TINY

RUN = [
    *(override for override in TINY if "limit_train" not in override),
    "trainer.limit_train_batches=6",
    "trainer.checkpoint_every_n_steps=2",
    "optim.weight_decay=0.5",
    "optim.layer_decay=0.5",
    "mame.r=10",
]


def last(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("fsdp", "fsdp"), ("auto", "fsdp"), ("fsdp", "auto")])
def test_a_run_goes_on_under_any_strategy(entry_point, stopped, tmp_path, before, after):
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    entry_point("train", whole, *RUN)
    with stopped(at=5):
        entry_point("train", folder, *RUN, f"trainer.strategy={before}")
    assert last(folder)["global_step"] == 4
    entry_point("train", folder, *RUN, f"trainer.strategy={after}", "resume=auto")
    expected, found = last(whole), last(folder)
    torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=1e-5)
    assert list(found["state_dict"]) == list(expected["state_dict"])
    for key in ("param_groups", "state"):
        torch.testing.assert_close(found["optimizer_states"][0][key], expected["optimizer_states"][0][key])
