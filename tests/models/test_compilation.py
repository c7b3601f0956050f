"""compile=true, as train.py and eval.py meet it. A backend that runs the captured graph stands in for inductor."""

import functools
import time

import pytest
import torch
import torch._inductor.config
from commands import TINY
from families import build, images, inputs, logits
from torch import nn

import mame_lab
from mame_lab import MameLabError
from mame_lab.measure import speed
from mame_lab.measure.result import Result
from mame_lab.models import family_of, shared_copy, unmerged_copy
from mame_lab.models.compilation import check_compiles, compile_models

HOUR = 3600.0
MACHINE = [override for override in TINY if override.split(".")[0] in ("trainer", "speed")]
RUN = [*TINY, "model.args.depth=1", "mame=ward", "mame.r=10", "mame.blocks=1", "compile=true"]


@pytest.fixture
def graphs(monkeypatch):
    """What was compiled so far; each took an hour, as far as the clock of the measurements can tell."""
    compiled = []

    def backend(graph, inputs, **options):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    monkeypatch.setattr(speed, "perf_counter", lambda: time.perf_counter() + HOUR * len(compiled))
    yield compiled
    torch.compiler.reset()


def test_a_run_times_compiled_models_and_counts_as_without(entry_point, tmp_path, graphs):
    entry_point("train", tmp_path / "compiled", *RUN, "trainer.max_epochs=2")
    # Two trials whether it works; training and validation; of each model the training step and the forward pass, timed.
    assert len(graphs) == 2 + 2 + 4
    checkpoint = tmp_path / "compiled/checkpoints/best.ckpt"
    entry_point("eval", tmp_path / "eager", *MACHINE, f"ckpt={checkpoint}")
    assert len(graphs) == 8
    compiled, eager = (Result.load(tmp_path / name / "result.json") for name in ("compiled", "eager"))
    assert (compiled.conditions.more["compiled"], eager.conditions.more["compiled"]) == (True, False)
    for arm, expected in ((compiled.merged, eager.merged), (compiled.unmerged, eager.unmerged)):
        assert arm.latency_ms_p95 < 60e3
        assert arm.train_samples_per_s > 4 / 60
        for name in ("gflops", "tokens", "peak_memory_mb", "top1"):
            assert getattr(arm, name) == getattr(expected, name)


@pytest.mark.parametrize("name", ["train", "eval"])
def test_packed_samples_are_refused_at_once(entry_point, tmp_path, graphs, name):
    with pytest.raises(MameLabError, match=r"compile=true and mame.batching=packed exclude each other, .*=per_sample"):
        entry_point(name, tmp_path, *RUN, "mame.r=null", "mame.tau=0.9", "mame.batching=packed")
    assert not graphs
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("merging", [["mame.r=null", "mame.tau=0.9"], ["mame=atc"]], ids=["thresholds", "atc"])
def test_a_run_of_what_compiles_to_no_single_graph(entry_point, tmp_path, graphs, merging):
    entry_point("train", tmp_path, *RUN, *merging, "trainer.max_epochs=1")
    assert Result.load(tmp_path / "result.json").conditions.more["compiled"]
    assert graphs


def test_blocks_of_different_drop_rates_all_compile(graphs):
    model = mame_lab.apply(build("vit", depth=12, drop_path_rate=0.2), tau=0.6).train()
    compile_models(model)
    model(images(3)).sum().backward()
    trained = len(graphs)
    assert trained >= 2 * 12
    model(images(3)).sum().backward()
    assert len(graphs) == trained
    model.eval()(images(3))
    assert len(graphs) >= trained + 3


@pytest.mark.parametrize("name", ["vit", "eva02", "hf_dinov2", "hf_siglip", "videomae"])
def test_thresholds_compile_to_few_graphs_whatever_the_lengths(graphs, name):
    model = mame_lab.apply(build(name), tau=0.3)
    eager = shared_copy(model)
    compile_models(model)
    lengths, compiled = set(), []
    for seed in range(6):
        x = inputs(name, batch=3, seed=seed)
        torch.testing.assert_close(logits(model, x), logits(eager, x), rtol=1e-10, atol=1e-10)
        compiled.append(len(graphs))
        lengths |= {count.max().item() for count in family_of(eager).trace(eager, x)}
    assert len(lengths) > 6
    assert 3 <= compiled[0] == compiled[-1] <= 6
    assert not [module for module in mame_lab.remove(model).modules() if "halves" in vars(module)]


def test_weights_that_are_shared_out_are_not_compiled(entry_point, tmp_path):
    with pytest.raises(
        MameLabError, match=r"^compile=true and trainer.strategy=fsdp exclude each other, .* whole weights"
    ):
        entry_point("train", tmp_path, *RUN, "trainer=fsdp")


def test_off_compiles(graphs):
    check_compiles(mame_lab.apply(build("vit", depth=1), tau=1), "cpu")
    assert graphs


def test_where_nothing_compiles_the_error_says_what_is_missing(monkeypatch):
    def backend(graph, inputs):
        raise FileNotFoundError("no g++")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    with pytest.raises(MameLabError, match=r"compile=true does not work .*no g\+\+.* compile=false") as error:
        check_compiles(nn.Linear(2, 2), "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.slow
@torch._inductor.config.patch({"cpp.cxx": ("/no/compiler",)})
def test_without_a_compiler():
    with pytest.raises(MameLabError, match=r"compile=true does not work .*/no/compiler.* compile=false"):
        check_compiles(nn.Linear(2, 2), "cpu")


def test_names_stay_and_copies_are_not_compiled(graphs):
    model = mame_lab.apply(build("vit", depth=1), r=5, blocks=1)
    keys = list(model.state_dict())
    compile_models(model)
    assert list(model.state_dict()) == keys
    for copy in (shared_copy(model), unmerged_copy(model)):
        copy(images())
    assert not graphs
    model(images())
    assert len(graphs) == 1


@torch._dynamo.config.patch(recompile_limit=2)  # to import timm.optim raises it to a million
def test_the_jobs_of_a_sweep_do_not_add_up_to_the_limit(graphs):
    for width in (1, 2, 3):
        model = nn.Linear(width, 1)
        compile_models(model)
        model(torch.zeros(2, width))
    assert len(graphs) == 3
