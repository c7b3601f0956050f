"""The multiply-adds that follow from the tokens are those that are counted in the model that really merges."""

import pytest
from commands import TINY
from families import build, inputs

from mame_lab.measure import cost, flops
from mame_lab.measure.result import Result
from mame_lab.merging import MaMe, Ward
from mame_lab.models import apply


@pytest.mark.parametrize(
    ("family", "method"),
    [("siglip", Ward(tau=0.8)), ("hf_vit", MaMe(tau=[0.8, 1, 0.9, 1, 1, 0.7]))],
    ids=str,
)
def test_the_costs_of_many_images_follow_from_their_tokens(family, method, monkeypatch):
    model, x = apply(build(family).float(), method), inputs(family, 10).float()
    counted = flops.gflops(model, x)[""]
    alone, seen = flops.gflops, []
    monkeypatch.setattr(flops, "gflops", lambda model, x: seen.append(len(x)) or alone(model, x))
    assert cost.adaptive_gflops(model, x, cost.COUNTED) == pytest.approx(counted, rel=2e-4)
    assert seen == [1] * cost.COUNTED


def test_the_costs_of_an_evaluation_are_those_of_the_images_that_are_timed(entry_point, tmp_path, monkeypatch):
    given = []

    def adaptive_gflops(model, images, count):
        given.append((len(images), count))
        return flops.gflops(model, images)[""]

    monkeypatch.setattr(cost, "adaptive_gflops", adaptive_gflops)
    settings = ["mame.tau=0.9", "speed.batch_size=24", "speed.cost_samples=3"]
    entry_point("eval", tmp_path, *TINY, *settings)
    assert given == [(24, 3)]
    result = Result.load(tmp_path / "result.json")
    assert result.merged.gflops < result.unmerged.gflops


def test_few_images_counted_say_what_many_cost():
    model, x = apply(build("vit").float(), Ward(tau=0.8)), inputs("vit", 24).float()
    assert cost.adaptive_gflops(model, x, 6) == pytest.approx(flops.gflops(model, x)[""], rel=1e-3)
