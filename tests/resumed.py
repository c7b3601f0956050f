"""What the tests of resuming share: a run of three epochs, and what is left of it."""

import json

import torch
from commands import TINY

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
