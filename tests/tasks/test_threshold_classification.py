"""Thresholds in real fits: they meet their budget, get gradients of the task, and are in the checkpoint."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mame_lab.merging import Ward
from mame_lab.merging.thresholds import Learning, Thresholds, soft_count
from mame_lab.tasks import thresholds
from mame_lab.tasks.optim import AdamW
from mame_lab.tasks.thresholds import Budget, ThresholdClassification, find_zero
from mame_lab.training import TrainerSettings

K = 3


class Merging(nn.Module):
    """Merges inputs of two blocks that are similarities, and gives logits that get worse with what block 0 merges."""

    def __init__(self, learning):
        super().__init__()
        self.head = nn.Linear(2, K).requires_grad_(False)
        vars(self)["learning"] = learning

    def forward(self, inputs):
        for block, best_BS in enumerate(inputs.unbind(1)):
            tau = self.learning.thresholds()[block]
            soft_B = soft_count(best_BS, tau, self.learning.thresholds.temperature)
            self.learning.leaving[block] = (best_BS > tau).sum(1) + soft_B - soft_B.detach()
        harm_B = self.learning.leaving[0] / 20
        return (
            F.one_hot(torch.zeros(len(inputs), dtype=torch.long), K) * (2 - harm_B)[:, None]
            + 0 * self.head.weight.sum()
        )


def loader(seed=0, count=64):
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(torch.rand(count, 2, 20, generator=generator), torch.zeros(count).long()), 16)


def task(flops=0.6, **changes):
    learning = Learning(base=Ward(tau=0.5), thresholds=Thresholds([0.5, 0.5], 0.1))
    share = lambda leaving_DB: 1 - leaving_DB.sum(0) / 40  # noqa: E731
    budget = Budget(flops, share, lambda: [inputs for inputs, _ in loader(1)])
    config = {"mame": {"flops": flops}, "seed": 0}
    settings = Merging(learning), K, AdamW(**changes), config
    return ThresholdClassification(*settings, learning=learning, budget=budget, asked=config["mame"])


def fit(folder, task, epochs=3, callbacks=(), **options):
    settings = TrainerSettings(epochs, accelerator="cpu", devices=1, log_every_n_steps=1, enable_progress_bar=False)
    trainer = settings.build(folder, [CSVLogger(folder, name="", version="")], callbacks)
    trainer.fit(task, loader(), loader(2), **options)
    return trainer


def logged(folder, key):
    with open(folder / "metrics.csv") as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


def test_thresholds_move_to_where_merging_is_harmless_at_the_cost_that_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(thresholds, "LR", 0.2)
    learner = task()
    fit(tmp_path, learner, epochs=10)
    harmful, harmless = learner.thresholds().tolist()
    assert harmful > 0.65 > 0.4 > harmless
    assert logged(tmp_path, "val/flops")[-1] == pytest.approx(0.6, rel=0.03)
    assert logged(tmp_path, "train/flops")[-1] == pytest.approx(0.6, rel=0.1)
    assert logged(tmp_path, "train/loss")[-1] < logged(tmp_path, "train/loss")[0]
    assert logged(tmp_path, "train/tau")[-1] == pytest.approx((harmful + harmless) / 2, abs=0.1)


@pytest.mark.parametrize("flops", [0.3, 0.9])
def test_the_budget_is_met_before_the_first_validation(tmp_path, flops, monkeypatch):
    monkeypatch.setattr(thresholds, "LR", 1e-9)
    learner = task(flops)
    fit(tmp_path, learner, epochs=1)
    first, second = learner.thresholds.logit_D.tolist()
    assert first == pytest.approx(second)
    assert logged(tmp_path, "val/flops") == pytest.approx([flops], rel=0.03)


def test_thresholds_have_a_rate_of_their_own_and_do_not_decay(tmp_path):
    learner = task(lr=0.5, weight_decay=0.9)
    trainer = fit(tmp_path, learner, epochs=1)
    (group,) = trainer.optimizers[0].param_groups
    assert group["initial_lr"] == thresholds.LR
    assert group["weight_decay"] == 0
    assert group["params"] == [learner.thresholds.logit_D]
    learner = task(lr=0.5, weight_decay=0.9)
    learner.model.head.requires_grad_(True)
    groups = fit(tmp_path / "both", learner, epochs=1).optimizers[0].param_groups
    assert [each["initial_lr"] for each in groups] == [0.5, 0.5, thresholds.LR]


def test_a_checkpoint_says_what_was_learned_and_what_was_asked_and_goes_on(tmp_path):
    whole = task()
    fit(tmp_path / "whole", whole, epochs=2)
    checkpoint = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["config"]["asked"] == {"flops": 0.6}
    assert checkpoint["config"]["mame"]["tau"] == whole.thresholds().tolist()
    assert Ward(**checkpoint["config"]["mame"]) == whole.learning.learned()
    assert {key for key in checkpoint["state_dict"] if key.startswith("model.")} == {
        "model.head.weight",
        "model.head.bias",
    }


class Keep(Callback):
    """Copies the last checkpoint before an epoch."""

    def on_train_epoch_start(self, trainer, *_):
        if trainer.current_epoch == 2:
            folder = Path(trainer.default_root_dir)
            shutil.copy(folder / "checkpoints/last.ckpt", folder / "kept.ckpt")


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    whole, resumed = task(), task()
    fit(tmp_path / "whole", whole, epochs=4, callbacks=[Keep()])
    resumed.thresholds.temperature += 9
    fit(tmp_path / "resumed", resumed, epochs=4, ckpt_path=tmp_path / "whole/kept.ckpt", weights_only=True)
    assert len(logged(tmp_path / "resumed", "train/loss")) == 8
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("zero", [0.0, 0.07, -3.0, 11.0])
def test_a_zero_is_found_in_few_trials(zero):
    tried = []

    def falling(x):
        tried.append(x)
        return round((zero - x) ** 3 + (zero - x), 2)

    off, found = find_zero(falling, 0.02, 14)
    assert found == pytest.approx(zero, abs=0.06)
    assert tried[0] == 0
    assert len(tried) <= 14
    assert off == abs(falling(found))


def test_the_closest_is_kept_where_a_jump_hides_the_zero():
    off, found = find_zero(lambda x: 1.0 if x < 0.31 else -0.4, 0.01, 8)
    assert off == 0.4
    assert found >= 0.31
    assert find_zero(lambda x: 5.0 - x, 0.01, 3) == pytest.approx((4.7, 0.3))


def test_a_budget_that_cannot_be_met_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(thresholds, "TRIALS", 1)
    with pytest.warns(UserWarning, match=r"mame.flops=0.9 is met to \d+% only"):
        fit(tmp_path, task(0.9), epochs=1)
