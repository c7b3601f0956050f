"""The multiply-adds that follow from the tokens are those that are counted in the model that really merges."""

import pytest
from families import build, inputs

from mame_lab import costs, speed
from mame_lab.merging import MaMe, Ward
from mame_lab.models import apply


@pytest.mark.parametrize(
    ("family", "method"),
    [("siglip", Ward(tau=0.8)), ("hf_vit", MaMe(tau=[0.8, 1, 0.9, 1, 1, 0.7]))],
    ids=str,
)
def test_the_costs_of_many_images_follow_from_their_tokens(family, method, monkeypatch):
    model, x = apply(build(family).float(), method), inputs(family, 10).float()
    counted = speed.gflops(model, x)[""]
    alone, seen = speed.gflops, []
    monkeypatch.setattr(speed, "gflops", lambda model, x: seen.append(len(x)) or alone(model, x))
    assert costs.adaptive_gflops(model, x) == pytest.approx(counted, rel=2e-4)
    assert seen == [1] * costs.COUNTED
