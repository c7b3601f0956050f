"""The multiply-adds that follow from the tokens are those that are counted in the model that really merges."""

from itertools import cycle

import pytest
import torch
from families import DEPTH, FAMILIES, build, inputs

from mame_lab import costs, speed
from mame_lab.merging import MaMe, Ward
from mame_lab.models import apply, family_of, twin

METHODS = [Ward(tau=0.8), MaMe(tau=[0.8, 1, 0.9, 1, 1, 0.7]), Ward(r=8, blocks=[0, 3, 5])]


def leaving(model, x, tokens):
    """The tokens that leave each sample in each block."""
    after_DB = torch.stack(family_of(model).trace(model, x))
    return -torch.cat([torch.full_like(after_DB[:1], tokens), after_DB]).diff(dim=0)


@pytest.mark.parametrize(("family", "method"), list(zip(FAMILIES, cycle(METHODS), strict=False)), ids=str)
def test_costs_are_those_that_are_counted(family, method):
    model, x = build(family), inputs(family, 2)
    merged = apply(twin(model), method)
    found = costs.count(merged, method, x[:1])
    counted = speed.gflops(merged, x)[""]
    leaving_DB = leaving(merged, x, found.tokens)
    assert found.gflops(leaving_DB).mean().item() == pytest.approx(counted, rel=0.01)
    assert found.share(leaving_DB).mean().item() == pytest.approx(counted / speed.gflops(model, x)[""], rel=0.01)


@pytest.mark.parametrize(("family", "method"), [("siglip", METHODS[0]), ("hf_vit", METHODS[1])], ids=str)
def test_the_costs_of_many_images_follow_from_their_tokens(family, method, monkeypatch):
    model, x = apply(build(family).float(), method), inputs(family, 10).float()
    counted = speed.gflops(model, x)[""]
    alone, seen = speed.gflops, []
    monkeypatch.setattr(speed, "gflops", lambda model, x: seen.append(len(x)) or alone(model, x))
    assert costs.adaptive_gflops(model, x) == pytest.approx(counted, rel=2e-4)
    assert seen == [1] * costs.COUNTED


def test_costs_are_differentiable_and_fall_with_every_token_that_leaves():
    found = costs.count(build("vit"), Ward(tau=0.8), inputs("vit", 1))
    found = costs.Costs(
        **{key: value.double() if isinstance(value, torch.Tensor) else value for key, value in vars(found).items()}
    )
    leaving_DB = torch.rand(DEPTH, 2, dtype=torch.float64).mul(4).requires_grad_()
    assert torch.autograd.gradcheck(found.share, leaving_DB)
    (slope_DB,) = torch.autograd.grad(found.share(leaving_DB).sum(), leaving_DB)
    assert (slope_DB.diff(dim=0) > 0).all()
    assert (slope_DB < 0).all()
    nothing_DB = torch.zeros(DEPTH, 1)
    off = costs.count(build("vit"), Ward(r=0), inputs("vit", 1))
    assert off.share(nothing_DB).tolist() == [1]
    assert found.share(nothing_DB) > 1
