"""Budgets drawn in training: which ones, when, for every process alike, and none left behind."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from commands import TINY
from families import build

import mame_lab
from mame_lab import MameLabError
from mame_lab.measure.result import Result
from mame_lab.merging import MaMe, ToMe, Ward
from mame_lab.tasks.classification import Classification
from mame_lab.training.freeze import FinetuneSettings
from mame_lab.training.random_r import DrawR, callbacks
from mame_lab.training.resume import PerStepSeed

RUN = [
    *(override for override in TINY if "limit_train" not in override and "max_epochs" not in override),
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=6",
    "trainer.checkpoint_every_n_steps=2",
    "dataset.num_workers=0",
    "mame.r=10",
    "mame.blocks=3",
    "mame.schedule=linear",
    "finetune.random_r=[0,4,0.25]",
]


def merging(model):
    return vars(model).get("method", Ward(r=0))


@pytest.fixture
def seen(monkeypatch):
    """The methods that batches were trained and validated by, in order."""
    found = {"training_step": [], "validation_step": []}

    def watch(name):
        step = getattr(Classification, name)

        def watched(self, batch):
            found[name].append(merging(self.model))
            return step(self, batch)

        monkeypatch.setattr(Classification, name, watched)

    for name in found:
        watch(name)
    return found


@pytest.mark.slow
def test_every_batch_trains_by_a_budget_and_all_else_by_the_configured_method(entry_point, tmp_path, seen, monkeypatch):
    entry_point("train", tmp_path / "whole", *RUN)
    trained, validated = list(seen["training_step"]), list(seen["validation_step"])
    own = Ward(r=10, blocks=3, schedule="linear")
    assert len(trained) == 12
    assert {method.r for method in trained} == {0, 4, 0.25}
    assert all(method == own.with_budget(method.r) for method in trained if method.r)
    assert validated
    assert all(method == own for method in validated)
    assert [round(tokens) for tokens in Result.load(tmp_path / "whole/result.json").merged.tokens] == [80, 70, 70]

    def stop(self, trainer, *arguments):
        if trainer.global_step == 9:
            raise RuntimeError("stopped")
        reseed(self, trainer, *arguments)

    reseed = PerStepSeed.on_train_batch_start
    monkeypatch.setattr(PerStepSeed, "on_train_batch_start", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        entry_point("train", tmp_path / "stopped", *RUN)
    monkeypatch.setattr(PerStepSeed, "on_train_batch_start", reseed)
    seen["training_step"].clear()
    entry_point("train", tmp_path / "stopped", *RUN, "resume=auto")
    assert seen["training_step"] == trained[8:]
    whole, again = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("whole", "stopped")
    )
    assert whole["config"]["mame"]["r"] == 10
    assert all(torch.equal(tensor, again["state_dict"][name]) for name, tensor in whole["state_dict"].items())


def draws(callback, model, epochs=10, batches=60, rank=0):
    found = []
    for epoch in range(epochs):
        for batch in range(batches):
            trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
            callback.on_train_batch_start(trainer, None, None, batch)
            found.append(merging(model).r)
    return found


def test_draws_are_uniform_and_alike_in_all_processes():
    model = mame_lab.apply(build("vit"), r=1)
    task = SimpleNamespace(model=model)
    callbacks = [DrawR([Ward(r=r) for r in (0, 2, 4)], seed) for seed in (0, 0, 1)]
    for callback in callbacks:
        callback.on_fit_start(None, task)
    first, second, other = (
        draws(callback, model, rank=rank) for callback, rank in zip(callbacks, (0, 1, 0), strict=True)
    )
    assert first == second != other
    assert set(first) == {0, 2, 4}
    assert all(abs(count - 200) < 50 for count in Counter(first).values())
    for left in (callbacks[0].on_validation_start, callbacks[0].on_fit_end):
        mame_lab.apply(model, r=3)
        left(None, task)
        assert merging(model).r == 1


@pytest.mark.parametrize(
    ("method", "at_4"),
    [
        (Ward(), Ward(r=4)),
        (Ward(tau=0.9, blocks=5, batching="union"), Ward(r=4, blocks=5)),
        (Ward(r=8, blocks=[0, 2], schedule="linear"), Ward(r=4, blocks=[0, 2], schedule="linear")),
        (Ward(r=[1, 2, 3]), Ward(r=4)),
        (Ward(flops=0.5, schedule="linear"), Ward(r=4, schedule="linear")),
        (MaMe(tau=0.9), MaMe(r=4)),
        (MaMe(r=8, tau=0.9), MaMe(r=4, tau=0.9)),
        (ToMe(speedup=2.0, prop_attn=False), ToMe(r=4, prop_attn=False)),
    ],
)
def test_a_budget_takes_the_place_of_whatever_says_how_much_merges(method, at_4):
    assert method.with_budget(4) == at_4


def test_a_budget_that_the_model_has_not_is_said_before_training(entry_point, tmp_path, seen):
    with pytest.raises(MameLabError, match=r"^finetune.random_r=\[0, 60\]: mame.r=60 is too large for block 0"):
        entry_point("train", tmp_path, *TINY, "finetune.random_r=[0,60]")
    assert not seen["training_step"]


@pytest.mark.parametrize(
    ("budgets", "others", "line"),
    [
        ([1.5], {}, r"finetune.random_r=\[1.5\]: mame.r=1.5 is not valid"),
        ([-1], {}, r"finetune.random_r=\[-1\]: mame.r=-1 is not valid"),
        ([True], {}, r"finetune.random_r=\[True\]: mame.r=True is not valid"),
        ([8, [4] * 6], {}, r"finetune.random_r=.*: \[4, 4, 4, 4, 4, 4\] is no budget"),
        ([None], {}, "finetune.random_r=.*: None is no budget"),
        ([4], {"method": Ward(r=0)}, r"finetune.random_r=\[4\] and mame=off .or mame.r=0. exclude each other"),
        ([4], {"method": ToMe()}, "mame=tome needs a budget"),
        ([4], {"method": Ward(flops=0.7, schedule="geometric")}, r"=\[4\]: mame.schedule=geometric"),
    ],
)
def test_what_is_wrong_is_said(budgets, others, line):
    settings = {"method": Ward(r=8), "seed": 0, "finetune": FinetuneSettings("full", random_r=budgets)} | others
    with pytest.raises(MameLabError, match=line) as raised:
        callbacks(build("vit"), SimpleNamespace(**settings))
    assert "\n" not in str(raised.value)


def test_without_budgets_there_is_no_callback():
    assert callbacks(None, SimpleNamespace(finetune=FinetuneSettings("full"))) == []
