import time

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mame_lab.measure import flops, memory, speed


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but where a test moves it: clock["now"] += seconds."""
    time = {"now": 0.0}
    monkeypatch.setattr(speed, "perf_counter", lambda: time["now"])
    return time


def arm(clock, calls, name, durations):
    durations = iter(durations)

    def call():
        calls.append(name)
        clock["now"] += next(durations)

    return call


def test_arms_take_turns_in_an_alternating_order_and_warm_up_is_not_counted(clock):
    calls = []
    arms = {
        "merged": arm(clock, calls, "m", [100, 100, 1, 2, 3]),
        "unmerged": arm(clock, calls, "u", [100, 100, 4, 5, 6]),
    }
    seconds = speed.time_interleaved(arms, "cpu", max_rounds=3, seconds=50)
    assert "".join(calls) == "mumu" + "mu" + "um" + "mu"
    assert seconds == {"merged": [1, 2, 3], "unmerged": [4, 5, 6]}


@pytest.mark.parametrize(
    ("limits", "rounds"),
    [
        ({"max_rounds": 7, "seconds": 1e9}, 7),
        ({"max_rounds": 30, "min_rounds": 4, "seconds": 0.0}, 4),
        ({"max_rounds": 30, "min_rounds": 1, "seconds": 20.0}, 10),
        ({"max_rounds": 2, "min_rounds": 9, "seconds": 0.5}, 2),
    ],
)
def test_measuring_ends_by_rounds_or_by_time(clock, limits, rounds):
    arms = {name: arm(clock, [], name, [1.0] * 99) for name in ("merged", "unmerged")}
    seconds = speed.time_interleaved(arms, "cpu", **limits)
    assert [len(taken) for taken in seconds.values()] == [rounds, rounds]


def test_calls_are_timed_between_synchronisations(monkeypatch):
    events = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: events.append("synchronise"))
    monkeypatch.setattr(speed, "perf_counter", lambda: events.append("clock") or 0.0)
    speed.time_interleaved({"merged": lambda: events.append("call")}, "cuda", max_rounds=1, warmup=0)
    assert events == ["synchronise", "clock", "call", "synchronise", "clock"]


def test_timing_takes_the_median_and_the_tail():
    timing = speed.Timing.from_seconds([0.9, 0.2, 0.1, 0.3, 0.2], batch=64)
    assert timing == speed.Timing(
        samples_per_s=pytest.approx(320),
        latency_ms_p50=pytest.approx(200),
        latency_ms_p95=pytest.approx(780),
        rounds=5,
        batch=64,
    )


def test_speedup_compares_round_with_round():
    assert speed.speedup([1, 10, 2], [3, 10, 8]) == 3  # the ratio of the medians would be 4
    assert speed.speedup([1, 5], [1, 5]) == 1
    with pytest.raises(ValueError, match="shorter"):
        speed.speedup([1, 2], [1])


def test_training_step_goes_backward_and_leaves_no_trace():
    model, gradients = nn.Linear(3, 2), []
    model.weight.register_hook(gradients.append)
    before = model.weight.clone()
    speed.training_step(model, F.cross_entropy, torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))()
    assert gradients[0].abs().sum() > 0
    assert model.weight.grad is None
    assert torch.equal(model.weight, before)


def loader(clock, batches):
    """Batches of so many samples, two views of each label, each after so many seconds."""
    for samples, seconds in batches:
        clock["now"] += seconds
        yield torch.zeros(samples, 3), torch.zeros(samples // 2)


@pytest.mark.parametrize(
    ("batches", "seconds", "rate", "left"),
    [
        ([(4, 100), (8, 1), (8, 1), (2, 0.5)], 1e9, 18 / 2.5, 0),
        ([(4, 100), (8, 1), (8, 1), (2, 0.5)], 2, 16 / 2, 1),
        ([(4, 100), (8, 1), (8, 1), (2, 0.5)], 0, 8 / 1, 2),
        ([(4, 100)], 1e9, None, 0),
        ([], 1e9, None, 0),
    ],
    ids=["to the end", "for a time", "one batch at least", "only the first", "empty"],
)
def test_a_loader_is_timed_after_its_first_batch(clock, batches, seconds, rate, left):
    given = loader(clock, batches)
    assert speed.loader_rate(given, seconds) == (None if rate is None else pytest.approx(rate))
    assert len(list(given)) == left


class Slow(Dataset):
    """12 samples, 20 ms each."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.zeros(3), 0


@pytest.mark.parametrize(("workers", "batch_size", "rate"), [(0, 3, 50), (2, 3, 100), (2, 6, 100), (2, 12, 50)])
def test_workers_have_nothing_ready_when_a_loader_is_timed(workers, batch_size, rate):
    loader = DataLoader(Slow(), batch_size, num_workers=workers, persistent_workers=workers > 0)
    assert speed.loader_rate(loader, 0.4) == pytest.approx(rate, rel=0.3)


def test_vit_s_costs_what_the_field_reports():
    model = timm.create_model("vit_small_patch16_224").eval()
    costs = flops.gflops(model, torch.zeros(1, 3, 224, 224))
    assert costs[""] == pytest.approx(4.60, abs=0.01)
    parts = [f"blocks.{index}" for index in range(12)] + ["patch_embed", "head"]
    assert sum(costs[name] for name in parts) == pytest.approx(costs[""])


def test_attention_pooling_is_counted_and_nothing_is_unfrozen():
    model = timm.create_model("test_vit", img_size=64, global_pool="map")
    model.blocks.requires_grad_(False)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    assert flops.gflops(model, torch.zeros(2, 3, 64, 64))["attn_pool"] > 0
    assert [parameter.requires_grad for parameter in model.parameters()] == trained


class PaddedAttention(nn.Module):
    """Keeps the tokens that are not zero, as many for the whole batch as its fullest sample needs."""

    def forward(self, x_BNC):
        kept = int(x_BNC.any(dim=2).sum(dim=1).max())
        x_BhNC = x_BNC[:, None, :kept]
        mask_NN = torch.zeros(kept, kept)
        return F.scaled_dot_product_attention(x_BhNC, x_BhNC, x_BhNC, attn_mask=mask_NN)


def test_every_sample_is_charged_for_its_own_tokens_and_for_attention():
    lengths, channels = [5, 2, 7], 8
    x_BNC = torch.zeros(3, 7, channels)
    for x_NC, length in zip(x_BNC, lengths, strict=True):
        x_NC[:length] = 1
    expected = sum(2 * n * n * channels / 1e9 for n in lengths) / len(lengths)
    assert flops.gflops(PaddedAttention(), x_BNC)[""] == pytest.approx(expected, rel=1e-12)


MEGABYTES = 10_000_000


def block(n=1):
    return torch.empty(n * MEGABYTES, dtype=torch.uint8)


def frees_one_of_three():
    _a, b = block(), block()
    del b
    return block()


def makes_views():
    return [block().view(10, -1)[i] for i in range(3)]


BEFORE = block(4)


@pytest.mark.parametrize(
    ("call", "blocks"),
    [
        (frees_one_of_three, 2),
        (lambda: [block(), block(), block()], 3),
        (lambda: [block() for _ in range(3)] and None, 3),
        (lambda: [block().sum() for _ in range(3)] and None, 1),
        (makes_views, 3),
        (lambda: BEFORE.view(2, -1).add_(1)[0], 0),
        (lambda: BEFORE + 1, 4),
    ],
)
def test_peak_memory_is_the_most_that_lived_at_a_time(call, blocks):
    assert memory.peak_memory(call, "cpu") == pytest.approx(blocks * MEGABYTES, abs=100)


def test_peak_memory_counts_what_autograd_keeps_and_the_gradients():
    x = torch.ones(MEGABYTES // 4, requires_grad=True)

    def forward():
        return x.exp().exp().exp().sum()

    def forward_without_gradient():
        with torch.no_grad():
            return forward()

    assert memory.peak_memory(forward, "cpu") == pytest.approx(3 * MEGABYTES, abs=100)
    assert memory.peak_memory(forward_without_gradient, "cpu") == pytest.approx(2 * MEGABYTES, abs=100)
    assert memory.peak_memory(lambda: forward().backward(), "cpu") >= 4 * MEGABYTES


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_peak_memory_on_cuda_is_the_allocators():
    before = BEFORE.cuda()
    assert memory.peak_memory(lambda: [before[:MEGABYTES] + i for i in range(3)], "cuda") >= 3 * MEGABYTES
    assert memory.peak_memory(lambda: [(before[:MEGABYTES] + i)[0].item() for i in range(3)], "cuda") < 3 * MEGABYTES


def test_peak_memory_is_unknown_where_the_device_does_not_tell():
    assert memory.peak_memory(lambda: None, "meta") is None
