"""A model that stops at a stage and goes on from there gives what the whole model gives."""

import families
import pytest
import torch
from families import DEPTH, FAMILIES

import mame_lab
from mame_lab.models import family_of
from mame_lab.models.split_forward import first_trained, join
from mame_lab.training import freeze
from mame_lab.training.freeze import FinetuneSettings

MERGING = {
    "off": None,
    "budget": {"r": 6, "blocks": 4},
    "adaptive": {"tau": 0.7},
    "packed": {"tau": 0.7, "batching": "packed"},
}


@pytest.mark.parametrize("merging", MERGING)
@pytest.mark.parametrize("family", FAMILIES)
def test_going_on_from_any_stage_gives_the_logits_of_the_whole(family, merging):
    model, x = families.build(family), families.inputs(family)
    if MERGING[merging]:
        mame_lab.apply(model, **MERGING[merging])
    logits = families.logits(model, x)
    split_model = family_of(model).splittable_copy(model)
    for stage in (0, 1, 3, DEPTH, DEPTH + 1):
        block_input = split_model.block_input(x, stage)
        assert torch.allclose(families.logits(split_model, block_input), logits, rtol=1e-10, atol=1e-12), stage
        joined = join(stage, list(block_input.samples()))
        assert torch.allclose(families.logits(split_model, joined), logits, rtol=1e-10, atol=1e-12), stage


@pytest.mark.parametrize("family", FAMILIES)
def test_a_splittable_copy_shares_its_parameters_and_their_names(family):
    model = families.build(family)
    split_model = family_of(model).splittable_copy(model)
    assert {name: id(p) for name, p in split_model.named_parameters()} == {
        n: id(p) for n, p in model.named_parameters()
    }
    assert list(split_model.state_dict()) == list(model.state_dict())
    assert not hasattr(model, "block_input"), "an unmerged model stays plain"


@pytest.mark.parametrize("prop_attn", [True, False])
@pytest.mark.parametrize("family", ["vit", "eva02", "hf_vit", "videomae"])
def test_samples_of_different_length_keep_what_they_are_in_any_batch(family, prop_attn):
    model, x = families.build(family), families.inputs(family)
    mame_lab.apply(model, tau=0.7, prop_attn=prop_attn)
    logits = families.logits(model, x)
    split_model = family_of(model).splittable_copy(model)
    samples = list(split_model.block_input(x, 4).samples())
    assert len({len(sample.x_NC) for sample in samples}) > 1
    for order in ([2, 0, 3], [1]):
        joined = join(4, [samples[i] for i in order])
        assert torch.allclose(families.logits(split_model, joined), logits[order], rtol=1e-10, atol=1e-12)


STAGES = {"blocks.-1|norm|head": DEPTH - 1, "norm": DEPTH, "head": DEPTH + 1, "blocks.2": 2, "blocks.0": 0, ".*": -1}


@pytest.mark.parametrize("pattern", STAGES)
@pytest.mark.parametrize("merging", ["off", "budget"])
def test_the_first_stage_that_trains_is_found(pattern, merging):
    model, x = families.build("vit"), families.inputs("vit", batch=1)
    if MERGING[merging]:
        mame_lab.apply(model, **MERGING[merging])
    freeze.freeze(model, FinetuneSettings("some", [pattern]))
    assert first_trained(family_of(model).splittable_copy(model), DEPTH, x) == STAGES[pattern]


def test_gradients_reach_what_trains_through_the_stage():
    model, x = families.build("vit"), families.inputs("vit")
    mame_lab.apply(model, r=6)
    freeze.freeze(model, FinetuneSettings("last", ["blocks.-1", "norm", "head"]))
    model(x).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    split_model = family_of(model).splittable_copy(model)
    with torch.no_grad():
        block_input = split_model.block_input(x, DEPTH - 1)
    split_model(block_input).square().sum().backward()
    assert wanted
    for name, gradient in wanted.items():
        assert torch.allclose(model.get_parameter(name).grad, gradient, rtol=1e-9, atol=1e-12), name
