import pytest
import torch
from families import DEPTH, GRID, build, images

import mame_lab
from mame_lab import Drop, ToMe


def test_budget_shows_every_block():
    model, x = mame_lab.apply(build("registers"), r=5), images()
    shown = mame_lab.summary(model, x)
    assert [block.tokens for block in shown.blocks] == [64, 59, 54, 49, 49, 49]
    assert {block.tokens_unmerged for block in shown.blocks} == {GRID * GRID + 5}
    assert shown.blocks[-1].gflops < shown.blocks[-1].gflops_unmerged
    assert sum(block.gflops for block in shown.blocks) < shown.gflops < shown.gflops_unmerged
    lines = str(shown).splitlines()
    assert len(lines) == DEPTH + 3
    assert "49" in lines[DEPTH]
    assert "69" in lines[DEPTH]


def test_adaptive_shows_the_spread_over_images():
    shown = mame_lab.summary(mame_lab.apply(build("vit"), tau=0.8), images())
    last = shown.blocks[-1]
    assert last.fewest < last.tokens < last.most
    assert f"{last.fewest}..{last.most}" in str(shown)


def test_union_is_charged_for_the_batch_it_ran_in():
    model, x = mame_lab.apply(build("vit"), tau=0.8, batching="union"), images()
    alone = [mame_lab.summary(model, image).gflops for image in x.split(1)]
    assert mame_lab.summary(model, x).gflops > 1.01 * sum(alone) / len(alone)


def test_packed_is_charged_what_its_samples_cost():
    model, x = build("registers"), images()
    padded = mame_lab.summary(mame_lab.apply(model, tau=0.8), x)
    assert mame_lab.summary(mame_lab.apply(model, tau=0.8, batching="packed"), x) == padded


@pytest.mark.parametrize("method", [ToMe(r=5, blocks=4), Drop(r=5)], ids=lambda method: method.method)
def test_what_it_is_compared_with_costs_the_same(method):
    """But for the merge steps: the two distances of `ward` are 2 % of a model as small as this."""
    model, x = build("registers"), images()
    merged = mame_lab.summary(mame_lab.apply(model, r=5), x)
    shown = mame_lab.summary(mame_lab.apply(model, method), x)
    assert [block.tokens for block in shown.blocks] == [block.tokens for block in merged.blocks]
    assert shown.gflops == pytest.approx(merged.gflops, rel=0.03)


def test_without_merging_both_sides_are_equal():
    shown = mame_lab.summary(build("vit"), images())
    assert shown.gflops == shown.gflops_unmerged
    assert all(block.tokens == block.tokens_unmerged for block in shown.blocks)


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(training):
    model, x = mame_lab.apply(build("vit", proj_drop_rate=0.1), tau=0.8).train(training), images()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    mame_lab.summary(model, x)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
