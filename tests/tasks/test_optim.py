"""Layer-wise learning rates: which layer a parameter is of, in every family, and the rate that it takes."""

import pytest
import timm
from families import DEPTH, TIMM, TRANSFORMERS, build
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay

from mame_lab import MameLabError
from mame_lab.models import family_of
from mame_lab.tasks.optim import AdamW, layers

BLOCKS = [f"blocks.{index}" for index in range(3)]
# Parts of the names of what stands before the first block, and after the last.
BEFORE = ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre", "pre_layrnorm", "rope", "embeddings")
AFTER = ("norm", "fc_norm", "layernorm", "post_layernorm", "attn_pool", "head", "classifier")


def vit():
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**sizes, class_token=False, global_pool="avg")


def by_name(model, groups, value):
    """`value` of the group that each parameter is in, by the parameter's name."""
    found = {id(parameter): group[value] for group in groups for parameter in group["params"]}
    return {name: found[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in found}


def groups(model, blocks=BLOCKS, **settings):
    return AdamW(**settings).build(model, blocks, total_steps=10, epochs=1)[0].param_groups


@pytest.mark.parametrize("family", [*TIMM, *TRANSFORMERS])
def test_layers_follow_the_forward_pass_in_every_family(family):
    model = build(family)
    blocks = family_of(model).block_names(model)
    names = [name for name, _ in model.named_parameters()]
    found = dict(layers(names, blocks))
    assert list(found) == names
    for index, block in enumerate(blocks):
        assert {found.pop(name) for name in names if name.startswith(f"{block}.")} == {index + 1}
    for name, layer in found.items():
        parts = name.split(".")
        assert layer == (0 if set(BEFORE) & set(parts) else DEPTH + 1), name
        assert set(BEFORE if layer == 0 else AFTER) & set(parts), name


def test_ten_blocks_are_not_one():
    names = ["embed", *(f"blocks.{index}.weight" for index in range(11)), "head"]
    assert [layer for _, layer in layers(names, [f"blocks.{index}" for index in range(11)])] == list(range(13))


def test_rates_and_decay_of_a_small_vit():
    model = vit()
    model.blocks[0].requires_grad_(False)
    found = groups(model, lr=0.1, layer_decay=0.5, weight_decay=0.3)
    rates, decays = by_name(model, found, "initial_lr"), by_name(model, found, "weight_decay")
    assert {name for name in rates if name.startswith("blocks.0")} == set()
    expected = {"patch_embed.proj.weight": 0.1 / 16, "pos_embed": 0.1 / 16, "blocks.1.attn.qkv.weight": 0.1 / 4}
    expected |= {"blocks.2.norm1.bias": 0.1 / 2, "fc_norm.weight": 0.1, "head.weight": 0.1, "head.bias": 0.1}
    assert {name: rates[name] for name in expected} == pytest.approx(expected)
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim > 1 and name in rates}
    assert {name for name, decay in decays.items() if decay == 0.3} == matrices - {"pos_embed"}
    assert set(decays.values()) == {0.3, 0.0}
    assert len(found) == 2 * 4
    assert len({id(parameter) for group in found for parameter in group["params"]}) == len(rates)


def test_rates_are_those_of_timm():
    """But for the final norm, which timm counts to the last block and BEiT and MAE to the head."""
    model = timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=24, num_heads=2)
    ours = by_name(model, groups(model, lr=1.0, layer_decay=0.7), "initial_lr")
    theirs = by_name(model, param_groups_layer_decay(model, layer_decay=0.7), "lr_scale")
    for name in ("norm.weight", "norm.bias"):
        assert (ours.pop(name), theirs.pop(name)) == (1.0, 0.7)
    assert ours == pytest.approx(theirs)


def test_without_it_there_are_two_groups_at_one_rate():
    found = groups(vit(), lr=0.1)
    assert [(group["initial_lr"], group["weight_decay"]) for group in found] == [(0.1, 0.05), (0.1, 0.0)]


@pytest.mark.parametrize("blocks", [BLOCKS, []])
def test_one_layer_alone_has_no_rates_to_tell_apart(blocks):
    model = vit().requires_grad_(not blocks)
    model.head.requires_grad_(True)
    with pytest.raises(MameLabError, match=r"^optim.layer_decay=0.5 has no meaning where all that trains is one layer"):
        groups(model, blocks, layer_decay=0.5)


@pytest.mark.parametrize("layer_decay", [0.0, 1.1])
def test_its_range(layer_decay):
    with pytest.raises(MameLabError, match=rf"^optim\.layer_decay={layer_decay}: set it to a value above 0"):
        AdamW(layer_decay=layer_decay)
