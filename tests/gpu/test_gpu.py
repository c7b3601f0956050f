"""What only a GPU can show. `pytest -m gpu` runs these alone; elsewhere they are skipped."""

import copy

import pytest
import torch
import torch.distributed
from families import build, images
from methods import budgets, thresholds
from torch import nn

import mame_lab
from mame_lab.measure.memory import peak_memory
from mame_lab.merging import Ward
from mame_lab.models import apply, family_of, shared_copy
from mame_lab.models.compilation import compile_models

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch sees (CUDA)"),
]
METHODS = budgets(5, clamp=True) | thresholds(0.5)
GRAPHS = {name: each for name, each in budgets(5, clamp=True).items() if "graph" not in each.gives_up}


def on_gpu(method=None, dtype: torch.dtype = torch.float32, name: str = "vit") -> nn.Module:
    model = build(name, depth=2).to("cuda", dtype).eval()
    return model if method is None else apply(model, method)


def some_images(batch: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return images(batch).to("cuda", dtype)


def every(methods):
    return pytest.mark.parametrize("method", methods.values(), ids=methods)


@every({name: each for name, each in METHODS.items() if not each.random})
@torch.no_grad()
def test_the_gpu_computes_what_the_cpu_does(method):
    expected = on_gpu(method).double().cpu()(images(4).double())
    torch.testing.assert_close(on_gpu(method, torch.float64)(some_images(4, torch.float64)).cpu(), expected)


@every(METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_merging_runs_and_is_taken_off_again(method, dtype):
    model, x = on_gpu(dtype=dtype), some_images(dtype=dtype)
    expected = model(x)
    merged = apply(shared_copy(model), method)(x)
    assert merged.isfinite().all()
    assert torch.equal(mame_lab.remove(apply(model, method))(x), expected)


@every({name: each for name, each in METHODS.items() if not each.random})
@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(method):
    model, x = on_gpu(method, torch.float64), some_images(4, torch.float64)
    torch.testing.assert_close(model(x), torch.cat([model(each) for each in x.split(1)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_packed_samples_attend_as_padded_ones_do(dtype):
    """By the kernel for samples of different length, which half precision alone has."""
    packed, padded = (on_gpu(Ward(tau=0.5, batching=way), dtype) for way in ("packed", "per_sample"))
    x = some_images(8, dtype)
    assert any(plan is not None and plan.valid_BK is not None for plan in family_of(padded).plans(padded, x))
    torch.testing.assert_close(packed(x), padded(x), rtol=0.05, atol=0.05)


@every(GRAPHS)
@torch.no_grad()
def test_a_budget_compiles_with_cuda_graphs(method):
    if method.random:
        pytest.skip("draws anew in every pass")
    model, x = on_gpu(method), some_images()
    expected, compiled = model(x), shared_copy(model)
    compile_models(compiled, graphs=True)
    for _ in range(3):
        torch.testing.assert_close(compiled(x).clone(), expected, rtol=1e-3, atol=1e-3)


@every(thresholds(0.5))
@torch.no_grad()
def test_thresholds_compile_between_their_steps(method):
    model = on_gpu(method)
    compiled = shared_copy(model)
    compile_models(compiled)
    for batch in (4, 4, 7):
        x = some_images(batch)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-3)


@every({name: each for name, each in GRAPHS.items() if name in ("ward", "mame", "tome")})
@torch.no_grad()
def test_a_budget_never_waits_for_the_gpu(method):
    model, x = on_gpu(method), some_images()
    model(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_training_again_with_deterministic_kernels_gives_the_same_bits():
    def trained() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = on_gpu(Ward(r=5)).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            model(some_images()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return copy.deepcopy(model.state_dict())

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, second = trained(), trained()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
def test_merging_takes_less_memory():
    model, x = on_gpu(), some_images(64)
    merged = apply(shared_copy(model), Ward(r=7))
    for each in (model, merged):
        each(x)
    unmerged_bytes, merged_bytes = (peak_memory(lambda each=each: each(x), "cuda") for each in (model, merged))
    assert 0 < merged_bytes <= unmerged_bytes


def test_ddp_trains_by_nccl(tmp_path):
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(on_gpu(Ward(r=5)).train(), device_ids=[0])
        model(some_images()).square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    finally:
        torch.distributed.destroy_process_group()
