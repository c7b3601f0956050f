"""What does not go together with a model while it merges, and what a method is given of it."""

import pytest
import torch
from families import (
    DEPTH,
    FAMILIES,
    TIMM,
    build,
    images,
    inputs,
    logits,
    state,
)

import mame_lab
from mame_lab.merging import EViT, MaMe, PiToMe, ToFu, Ward

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.mark.parametrize(
    ("family", "name"), [("siglip", "VisionTransformer"), ("videomae", "VideoMAEForVideoClassification")]
)
def test_a_class_token_is_needed_for_its_attention(family, name):
    model, x = build(family), inputs(family)
    expected = logits(model, x)
    with pytest.raises(mame_lab.MameLabError, match=rf"mame=evit goes by .* a class token, which this {name} has not"):
        mame_lab.apply(model, EViT(r=6))
    assert torch.equal(logits(model, x), expected)


def test_each_block_has_its_own_place():
    model = mame_lab.apply(build("vit"), PiToMe(r=3))
    assert [method.margin for method in model.methods] == pytest.approx([0.9 - 0.9 * i / DEPTH for i in range(DEPTH)])
    for method in (ToFu(r=3), PiToMe(r=3)):
        assert [each.early for each in mame_lab.apply(model, method).methods] == [True] * 3 + [False] * 3


@every_family
@torch.no_grad()
def test_without_proportional_attention_sizes_do_not_matter_to_it(family):
    model, x = build(family), inputs(family)
    weighted, unweighted = (logits(mame_lab.apply(model, MaMe(r=5, prop_attn=weighs)), x) for weighs in (True, False))
    assert not torch.equal(weighted, unweighted)
    assert state(model, x).bias_B11N is None


@every_family
def test_masks_are_refused(family):
    model, name = mame_lab.apply(build(family), r=5), "attn_mask" if family in TIMM else "attention_mask"
    with pytest.raises(mame_lab.MameLabError, match=name):
        model(inputs(family), **{name: torch.zeros(1, 1, 1, 64)})


@pytest.mark.parametrize("given", [0, 8, 0.5, [], (), "ward", "", Ward, torch.ones(9, 9)], ids=repr)
@pytest.mark.parametrize("act", [mame_lab.apply, lambda model, method: mame_lab.solve(model, method, images())])
def test_what_is_no_method_is_refused_in_one_line(given, act):
    model = build("vit")
    with pytest.raises(mame_lab.MameLabError, match=r"is no merge method: give r by name, as in apply") as error:
        act(model, given)
    assert "\n" not in str(error.value)
    assert type(model) is type(build("vit"))
