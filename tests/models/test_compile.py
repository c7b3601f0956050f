"""Budgets under torch.compile: one graph, no break, and no recompilation while the size of the batches stays.

Backends that run the captured graph stand in for inductor, which takes minutes on a CPU.
"""

import pytest
import timm
import torch
from families import build, images, inputs, logits
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

import mame_lab
from mame_lab.merging import Drop, MaMe, ToMe, Ward

# A block that merges and one that meets merged tokens; where both merge, the second meets sizes too.
BUDGETS = {
    "ward": Ward(r=5, blocks=1),
    "fraction": Ward(r=0.1, blocks=1),
    "list": Ward(r=[0.2, 5]),
    "mame": MaMe(r=5, blocks=1),
    "paper, spread": MaMe(r=5, tau=0.5, blocks=1),
    "tome": ToMe(r=5, blocks=1),
    "drop": Drop(r=5, blocks=1),
}


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    counters.clear()


def merging(family: str, budget: str, depth: int = 2, **arguments) -> torch.nn.Module:
    return mame_lab.apply(build(family, depth=depth, **arguments), BUDGETS[budget])


def seeded(model, x):
    """The output for one state of the random generator, from which Drop and drop path draw."""
    torch.manual_seed(0)
    return logits(model, x)


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "budget"),
    [
        ("vit", "ward"),
        ("vit", "tome"),
        ("vit", "drop"),
        ("registers", "list"),
        ("vit_avg", "fraction"),
        ("vit_avg", "mame"),
        ("siglip", "paper, spread"),
        ("eva02", "tome"),
        ("videomae", "tome"),
        pytest.param("hf_dinov2", "ward", marks=pytest.mark.slow),
        pytest.param("hf_vit", "list", marks=pytest.mark.slow),
    ],
)
def test_one_graph_serves_all_batches_of_a_size(family, budget):
    model, graphs = merging(family, budget), CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=graphs)
    for seed in range(4):
        x = inputs(family, 4, seed)
        assert torch.equal(seeded(compiled, x), seeded(model, x))
    assert graphs.frame_count == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    "budget", ["paper, spread", *(pytest.param(b, marks=pytest.mark.slow) for b in ("list", "tome"))]
)
def test_one_graph_trains(budget):
    model = merging("vit", budget, drop_path_rate=0.3).train()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for seed in range(3):
        gradients = []
        for each in (model, compiled):
            optimizer.zero_grad()
            seeded(each, images(4, seed)).square().mean().backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
        optimizer.step()
    assert graphs.frame_count == 1


SIZES = [4, 3, 4, 2]


@torch.no_grad()
@pytest.mark.parametrize(
    ("dynamic", "compilations"),
    [
        (None, [1, 2, 2, 2]),  # The first other size, such as a smaller last batch, compiles for all sizes.
        (True, [1, 1, 1, 1]),
        (False, [1, 2, 2, 3]),  # What compile=true does: each size gets its own, fastest graph.
    ],
)
def test_what_another_batch_size_costs(dynamic, compilations):
    model, graphs = merging("vit", "ward", depth=1), CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=graphs)
    counted = []
    for size in SIZES:
        x = images(size)
        assert torch.equal(compiled(x), model(x))
        counted.append(graphs.frame_count)
    assert counted == compilations


@torch.no_grad()
def test_autocast_is_part_of_the_graph():
    model, x = merging("registers", "ward").float(), images().float()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(x), model(x))


@torch.no_grad()
def test_a_real_model_has_no_break():
    model = timm.create_model("vit_tiny_patch16_224", depth=2).eval()
    found = torch._dynamo.explain(mame_lab.apply(model, r=16, blocks=1))(torch.randn(2, 3, 224, 224))
    assert (found.graph_count, found.graph_break_count) == (1, 0)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("budget", ["list", "paper, spread", "tome"])
def test_inductor_gives_the_same(budget):
    model = merging("registers", budget).float()
    compiled = torch.compile(model, fullgraph=True)
    for seed in range(2):
        x = images(4, seed).float()
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
