"""The classification task in real fits: what it logs, how it steps, what its checkpoints hold, and how it stops."""

import csv

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mame_lab.errors import MameLabError
from mame_lab.tasks.classification import Classification
from mame_lab.tasks.optim import AdamW, lr_factor
from mame_lab.training.trainer import TrainerSettings

K = 7
CONFIG = {"model": {"name": "linear", "args": None}, "mame": {"r": [0, 8], "tau": 0.9, "clamp": False}}


class Named(nn.Module):
    """Parameters of every kind that decay treats differently."""

    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
        self.gamma = nn.Parameter(torch.ones(8))
        self.linear = nn.Linear(8, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.norm = nn.LayerNorm(8)

    def no_weight_decay(self):
        return {"pos_embed"}


def loader(count, batch_size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs, labels_B = torch.randn(count, K, generator=generator), torch.randint(K, (count,), generator=generator)
    return DataLoader(TensorDataset(inputs, labels_B), batch_size)


def trainer(folder, callbacks=(), epochs=2):
    settings = TrainerSettings(epochs, accelerator="cpu", devices=1, log_every_n_steps=1, enable_progress_bar=False)
    return settings.build(folder, [CSVLogger(folder, name="", version="")], callbacks)


def logged(folder, key):
    with open(folder / "metrics.csv") as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.2), (3, 0.8), (4, 1.0), (8, 0.1 + 0.9 * (2 + 2**0.5) / 4), (12, 0.55), (20, 0.1), (99, 0.1)],
)
def test_lr_rises_to_its_peak_and_falls_by_a_cosine(step, factor):
    assert lr_factor(step, total_steps=20, warmup_steps=4, min_lr_ratio=0.1) == pytest.approx(factor)


def test_lr_factor_of_a_run_that_is_all_warmup():
    assert [lr_factor(step, 2, 2, 0.0) for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_decay_is_for_matrices_and_frozen_parameters_are_left_out():
    model = Named()
    optimizer, _ = AdamW(lr=0.1, weight_decay=0.3, betas=[0.8, 0.9]).build(model, [], total_steps=10, epochs=2)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decays[id(p)] for name, p in model.named_parameters() if id(p) in decays}
    assert names == {
        "linear.weight": 0.3,
        "linear.bias": 0,
        "norm.weight": 0,
        "norm.bias": 0,
        "gamma": 0,
        "pos_embed": 0,
    }
    assert all(group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": 0.0},
        {"weight_decay": -1.0},
        {"betas": [0.9]},
        {"betas": [0.9, 1.0]},
        {"warmup_epochs": -1.0},
        {"min_lr_ratio": 2.0},
        {"label_smoothing": 1.0},
    ],
)
def test_a_value_out_of_range_is_named(bad):
    (key,) = bad
    with pytest.raises(MameLabError, match=rf"^optim\.{key}="):
        AdamW(**bad)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_the_schedule_takes_a_step_an_update_and_the_rate_of_the_head_is_logged(tmp_path, layer_decay):
    optim = AdamW(lr=0.01, warmup_epochs=0.5, min_lr_ratio=0.1, layer_decay=layer_decay)
    model = nn.Sequential(nn.Linear(K, K), nn.Linear(K, K))
    trainer(tmp_path, epochs=2).fit(Classification(model, K, optim, {}, blocks=["0"]), loader(32), loader(8))
    expected = [0.01 * lr_factor(step, total_steps=8, warmup_steps=2, min_lr_ratio=0.1) for step in range(8)]
    assert logged(tmp_path, "train/lr") == pytest.approx(expected)


def test_labels_are_smoothed_in_training_only(tmp_path):
    model, data = nn.Linear(K, K), loader(8)
    inputs, labels_B = next(iter(data))
    logits_BK = model(inputs).detach()
    optim = AdamW(lr=1e-9, label_smoothing=0.4)
    trainer(tmp_path, epochs=1).fit(Classification(model, K, optim, {}), data, data)
    smoothed = F.cross_entropy(logits_BK, labels_B, label_smoothing=0.4)
    assert logged(tmp_path, "train/loss") == pytest.approx([smoothed.item()])
    assert logged(tmp_path, "val/loss") == pytest.approx([F.cross_entropy(logits_BK, labels_B).item()], rel=1e-5)


@pytest.mark.parametrize(("classes", "fifth"), [(7, 5), (3, 3)])
def test_metrics_are_those_of_all_samples(tmp_path, classes, fifth):
    """The first batch is all right, so top-1 and top-5 start equal; the last batch is smaller."""
    labels_B = torch.arange(22) % classes
    logits_BK = torch.randn(22, classes, generator=torch.Generator().manual_seed(0))
    logits_BK[:8] = 9 * F.one_hot(labels_B[:8], classes)
    rank_B = (logits_BK > logits_BK.gather(1, labels_B[:, None])).sum(1)
    data = DataLoader(TensorDataset(logits_BK, labels_B), batch_size=8)
    expected = {
        "loss": F.cross_entropy(logits_BK, labels_B).item(),
        "top1": (rank_B == 0).float().mean().item(),
        "top5": (rank_B < fifth).float().mean().item(),
    }
    task, runner = Classification(nn.Identity(), classes, AdamW(), {}), trainer(tmp_path)
    for stage, (metrics,) in {
        "val": runner.validate(task, data, verbose=False),
        "test": runner.test(task, data, verbose=False),
    }.items():
        assert metrics == pytest.approx({f"{stage}/{name}": value for name, value in expected.items()})


def test_a_checkpoint_carries_the_configuration_and_loads_without_pickle(tmp_path):
    task = Classification(nn.Linear(K, K), K, AdamW(), CONFIG)
    trainer(tmp_path).fit(task, loader(16), loader(16))
    for name in ("best", "last"):
        checkpoint = torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["config"] == CONFIG
        assert set(checkpoint["state_dict"]) == {"model.weight", "model.bias"}
    torch.testing.assert_close(checkpoint["state_dict"]["model.weight"], task.model.weight.data)


class Poison(Callback):
    """Turns the weights to infinity when the hook `when` is called in epoch 1."""

    def __init__(self, when):
        setattr(self, when, self.poison)

    def poison(self, trainer, task, *_):
        if trainer.current_epoch == 1:
            task.model.weight.data.fill_(float("inf"))


@pytest.mark.parametrize(
    ("when", "loss", "step"), [("on_train_batch_start", "train/loss", 2), ("on_validation_start", "val/loss", 4)]
)
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, when, loss, step):
    task = Classification(nn.Linear(K, K), K, AdamW(lr=0.25), {})
    with pytest.raises(MameLabError) as caught:
        trainer(tmp_path, [Poison(when)], epochs=3).fit(task, loader(16), loader(16))
    message = str(caught.value)
    assert message.startswith(f"optim.lr=0.25: {loss} is not finite at step {step}, epoch 1: ")
    assert "\n" not in message
    for name in ("best", "last"):
        path = tmp_path / "checkpoints" / f"{name}.ckpt"
        assert str(path) in message
        checkpoint = torch.load(path, weights_only=True)
        assert checkpoint["global_step"] == 2
        assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())


def test_a_first_loss_that_is_not_finite_leaves_no_checkpoint(tmp_path):
    model = nn.Linear(K, K)
    model.weight.data.fill_(float("nan"))
    with pytest.raises(MameLabError, match="none was written"):
        trainer(tmp_path).fit(Classification(model, K, AdamW(), {}), loader(16), loader(16))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_in_half_precision_are_summed_in_single(dtype):
    task = Classification(nn.Linear(K, K), K, AdamW(), CONFIG).to(dtype)
    mean = task.metrics["val/loss"]
    for _ in range(700):
        mean.update(torch.full((100,), 2.5))
    assert mean.compute() == 2.5
