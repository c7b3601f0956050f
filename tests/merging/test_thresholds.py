"""Thresholds given as a list: each block merges by its own."""

import pytest
import torch
from families import DEPTH, FAMILIES, build, inputs, logits

import mame_lab
from mame_lab import MameLabError
from mame_lab.merging import MaMe, Ward
from mame_lab.models import family_of


@pytest.mark.parametrize("family", FAMILIES)
def test_each_block_has_its_own_threshold(family):
    """So only the blocks before the first that merges see all tokens."""
    model, x = build(family), inputs(family)
    all_of = int(family_of(model).trace(model, x)[0][0])
    mame_lab.apply(model, tau=[1, 1, 0.5, 1, 0.3, 1])
    tokens_DB = torch.stack(family_of(model).trace(model, x))
    assert (tokens_DB[:2] == all_of).all()
    assert (tokens_DB[2] < all_of).all()
    assert torch.equal(tokens_DB[3], tokens_DB[2])
    assert (tokens_DB[4] < tokens_DB[3]).any()
    expected = logits(mame_lab.apply(model, tau=0.7), x)
    assert torch.equal(logits(mame_lab.apply(model, tau=[0.7] * DEPTH), x), expected)
    assert "methods" not in vars(mame_lab.remove(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": [0.9, 2.0]}, r"mame.tau=\[0.9, 2.0\] is out of range"),
        ({"tau": "high"}, "mame.tau=high is out of range"),
        ({"tau": [0.9], "blocks": 3}, r"mame.blocks=3 contradicts mame.tau=\[0.9\]"),
        ({"tau": [0.9], "r": 3}, r"mame.r=3 contradicts mame.tau=\[0.9\]"),
        ({"tau": [0.9], "schedule": "linear"}, r"mame.schedule=linear contradicts mame.tau=\[0.9\]"),
        (
            {"flops": 0.5, "schedule": "learned"},
            "mame.schedule=learned is not known here: choose from geometric, .*rate",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", [Ward, MaMe])
def test_contradictions(method, settings, message):
    with pytest.raises(MameLabError, match=message):
        method(**settings)


def test_a_list_for_another_depth_says_so():
    with pytest.raises(MameLabError, match=r"mame.tau=\[0.9, 0.8\] has 2 entries: give one for each of 6 blocks"):
        mame_lab.apply(build("vit"), tau=[0.9, 0.8])


def test_a_list_of_ones_is_off():
    model = build("vit")
    assert mame_lab.apply(model, tau=[1] * DEPTH) is model
    assert "method" not in vars(model)


@torch.no_grad()
def test_tokens_are_counted_on_the_device_of_the_images():
    """Also before the first merge; "meta" stands for any device but the CPU."""
    model = mame_lab.apply(build("vit"), r=[0, 4, 0, 4, 0, 0]).to("meta")
    assert {tokens_B.device.type for tokens_B in family_of(model).trace(model, inputs("vit").to("meta"))} == {"meta"}
