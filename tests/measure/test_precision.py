"""Half precision by weights: models and images are converted alike, and what was given is left as it was."""

import json
from types import SimpleNamespace

import pytest
import torch
from commands import BENCHMARK, TINY
from families import FAMILIES, build, inputs
from lightning.pytorch.plugins import HalfPrecision
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from mame_lab import Ward, apply
from mame_lab.measure.precision import converted, prepared
from mame_lab.models import family_of, shared_copy

HALVES = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
FAST = [override for override in BENCHMARK if not override.startswith("trainer.limit_train")]
BENCHMARKS = {
    "throughput": ["benchmark.r=8", "benchmark.batch_sizes=[2]", "benchmark.rounds=3"],
    "budgets": ["benchmark.r=[0,8]", "benchmark.batch_size=2", "benchmark.rounds=3"],
    "frontier": ["benchmark.images=8", "benchmark.training_images=24", "benchmark.costs=[0.8]",
                 "benchmark.arms=[ward:geometric,ward:adaptive]"],
    "grid_attention": ["benchmark.images=2"],
}  # fmt: skip


def trainer(precision):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(strategy=strategy, precision_plugin=HalfPrecision(precision))


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_runs_in_half_precision_and_is_left_as_it_was(family, precision):
    model, images = apply(build(family).float(), Ward(r=5)), inputs(family, 2).float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    half, dtype = prepared(model, trainer(precision)), HALVES[precision]
    logits_BK = family_of(half).feature_and_patches(half, converted(images, trainer(precision)))[0]
    assert logits_BK.dtype == dtype
    assert {p.dtype for p in half.parameters()} == {dtype}
    assert all(one is two for one, two in zip(half.parameters(), shared_copy(half).parameters(), strict=True))
    assert all(tensor.dtype == before[name].dtype for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def ran():
    """The types of the weights of all linear layers that have run."""
    dtypes = set()

    def note(module, arguments):
        if isinstance(module, nn.Linear):
            dtypes.add(module.weight.dtype)

    hook = register_module_forward_pre_hook(note)
    yield dtypes
    hook.remove()


@pytest.mark.parametrize("precision", [*HALVES, "bf16-mixed"])
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_benchmarks_run_in_half_precision(entry_point, ran, tmp_path, benchmark, precision):
    overrides = [f"trainer.precision={precision}", f"benchmark={benchmark}", *BENCHMARKS[benchmark]]
    entry_point("eval", tmp_path, *FAST, *overrides)
    assert (tmp_path / f"{benchmark}.csv").exists()
    assert ran == {HALVES.get(precision, torch.float32)}


def test_fine_tuned_checkpoints_are_compared_in_half_precision(entry_point, ran, tmp_path):
    entry_point("train", tmp_path / "head", *TINY, "mame=off")
    start = tmp_path / "head/checkpoints/best.ckpt"
    entry_point("train", tmp_path / "tuned", *TINY, "mame.r=20", f"model.weights={start}")
    ran.clear()
    tuned = f"benchmark.checkpoints={tmp_path / 'tuned/checkpoints/best.ckpt'}"
    entry_point("eval", tmp_path, f"ckpt={start}", "benchmark=recovery", tuned, *FAST[4:], "trainer.precision=16-true")
    assert (tmp_path / "recovery.csv").exists()
    assert ran == {torch.float16}


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["classifier", "k-NN"])
@pytest.mark.parametrize("precision", [*HALVES, "bf16-mixed"])
def test_an_evaluation_in_half_precision(entry_point, ran, tmp_path, precision, judge):
    model = ["model.num_classes=0", "dataset.batch_size=16"] if judge == "k-NN" else []
    entry_point("eval", tmp_path, *FAST, "mame.flops=0.8", f"trainer.precision={precision}", *model)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["conditions"]["dtype"] == precision
    assert found["evaluated_by"] == judge
    assert 0 < found["feature_error"] < 1
    assert ran == {HALVES.get(precision, torch.float32)}
