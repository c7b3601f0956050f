"""transformers' backbones that have no classifier: feature maps and hidden states are those of the full grid."""

import pytest
import torch
import transformers
from families import DEPTH, GRID, blocks, copies, images, inputs
from torch import nn

import mame_lab
from mame_lab.merging import MaMe, Ward
from mame_lab.models import family_of

SIZES = {"hidden_size": 48, "num_hidden_layers": DEPTH, "num_attention_heads": 3, "image_size": 64, "patch_size": 8}


def dinov2(**changes) -> nn.Module:
    config = transformers.Dinov2Config(**SIZES, layerscale_value=0.5, out_features=["stage2", "stage6"], **changes)
    return with_wide_weights(transformers.Dinov2Backbone(config))


def with_wide_weights(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15)
    return model.double().eval()


@pytest.mark.parametrize("changes", [{}, {"reshape_hidden_states": False}, {"apply_layernorm": False}], ids=str)
@pytest.mark.parametrize("method", [Ward(r=4), MaMe(tau=1 - 1e-9, blocks=DEPTH)], ids=str)
@torch.no_grad()
def test_feature_maps_of_copies_are_those_of_the_plain_model(method, changes):
    model = dinov2(**changes)
    x = copies(model)
    plain = model(x, output_hidden_states=True)
    merged = mame_lab.apply(model, method)(x, output_hidden_states=True)
    assert type(merged) is type(plain)
    assert (family_of(model).trace(model, x)[-1] < GRID * GRID - 8).all()
    for found, expected in zip(
        [*merged.feature_maps, *merged.hidden_states], [*plain.feature_maps, *plain.hidden_states], strict=True
    ):
        assert found.is_contiguous() == expected.is_contiguous()
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("asked", [None, False, True, 2, [1, -1]], ids=str)
@torch.no_grad()
def test_hidden_states_are_those_that_are_asked_for(asked):
    model, x = dinov2(), inputs("hf_dinov2")
    plain = model(x, output_hidden_states=asked)
    merged = mame_lab.apply(model, r=5)(x, output_hidden_states=asked)
    assert merged.keys() == plain.keys()
    if asked:
        assert [state is None for state in merged.hidden_states] == [state is None for state in plain.hidden_states]
    assert not torch.equal(merged.feature_maps[0], plain.feature_maps[0])
    assert torch.equal(model(x, return_dict=False)[0][0], merged.feature_maps[0])
    for found, expected in zip(mame_lab.remove(model)(x).feature_maps, plain.feature_maps, strict=True):
        assert torch.equal(found, expected)


PREFIX = 5  # class token and registers


def dinov3() -> nn.Module:
    config = transformers.DINOv3ViTConfig(**SIZES, intermediate_size=96, num_register_tokens=PREFIX - 1)
    return with_wide_weights(transformers.DINOv3ViTModel(config))


@pytest.mark.parametrize("method", [Ward(r=4), Ward(tau=1 - 1e-9, batching="packed")], ids=str)
@torch.no_grad()
def test_dinov3_restores_copies(method):
    model = dinov3()
    x = copies(model)
    plain = model(x, output_hidden_states=True)
    merged = mame_lab.apply(model, method)(x, output_hidden_states=True)
    assert (family_of(model).trace(model, x)[-1] < GRID * GRID - 8).all()
    assert merged.keys() == plain.keys()
    for found, expected in zip(
        [*merged.hidden_states, merged.pooler_output], [*plain.hidden_states, plain.pooler_output], strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", [Ward(r=[3, 0, 5, 4, 0, 0]), Ward(tau=0.8)], ids=str)
@torch.no_grad()
def test_rotary_embeddings_travel_with_their_tokens(method):
    """Every attention is given the rows of its tokens' places in the full sequence."""
    model, x, given = dinov3(), images(), []
    plain, (cos, sin) = model(x).last_hidden_state, model.rope_embeddings(x)
    mame_lab.apply(model, method)
    hooks = [
        block.attention.register_forward_pre_hook(
            lambda _, args, options: given.append(options["position_embeddings"]), with_kwargs=True
        )
        for block in blocks(model)
    ]
    plans = family_of(model).plans(model, x)
    places = [torch.arange(PREFIX + GRID * GRID) for _ in x]
    for rows, plan in zip(given, plans, strict=True):
        for found, table in zip(rows, (cos, sin), strict=True):
            for i, place_N in enumerate(places):
                row = found.expand(len(x), 1, *found.shape[-2:])[i, 0, : len(place_N) - PREFIX]
                assert torch.equal(row, table[place_N[PREFIX:] - PREFIX])
        if plan is not None:
            places = [place_N[plan.index_BK[i, : plan.tokens()[i]]] for i, place_N in enumerate(places)]
    assert len({tuple(place_N.tolist()) for place_N in places}) > 2
    for hook in hooks:
        hook.remove()
    assert torch.equal(mame_lab.remove(model)(x).last_hidden_state, plain)


@torch.no_grad()
def test_dinov3_packed_equals_padded():
    model, x = dinov3(), images(5)
    padded = mame_lab.apply(model, tau=0.8)(x).last_hidden_state
    packed = mame_lab.apply(model, tau=0.8, batching="packed")(x).last_hidden_state
    torch.testing.assert_close(packed, padded, rtol=1e-11, atol=1e-11)
