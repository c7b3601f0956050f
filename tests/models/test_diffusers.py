"""Merging in the U-Nets of diffusion pipelines."""

import copy
import io
from functools import partial

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from families import build
from methods import GRID
from torch import nn

import mame_lab
from mame_lab import MaMe, MameLabError, ToMe, UnsupportedModelError, Ward
from mame_lab.merging import Drop, ToMeSD
from mame_lab.merging.grid.settings import Grid
from mame_lab.models import library_of, merges, shared_copy
from mame_lab.models.diffusers.unet import MergingAttention, UNetMergeContext

SMALL = {
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": (2, 4, 4),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
XL = SMALL | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
}
KINDS = {"sd1": SMALL, "sd2": SMALL | {"use_linear_projection": True, "upcast_attention": True}, "sdxl": XL}


def unet_of(kind: str = "sd2") -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**KINDS[kind]).double().eval()


def inputs(batch: int = 2, height: int = 8, width: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(batch, 4, height, width, generator=generator, dtype=torch.float64),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(batch, 5, 12, generator=generator, dtype=torch.float64),
    }


def run(unet: nn.Module, **given) -> torch.Tensor:
    with torch.no_grad():
        return unet(**(inputs() | given)).sample


@pytest.mark.parametrize("kind", KINDS)
def test_off_and_removed_are_plain_to_the_bit(kind):
    unet = unet_of(kind)
    plain, keys, types = run(unet), list(unet.state_dict()), [type(module) for module in unet.modules()]
    mame_lab.apply(unet, r=0)
    assert not merges(unet)
    assert torch.equal(run(unet), plain)
    mame_lab.apply(unet, r=0.5)
    assert merges(unet)
    assert not torch.equal(run(unet), plain)
    assert list(unet.state_dict()) == keys
    mame_lab.apply(unet, r=0.25)
    assert len(unet._forward_pre_hooks) == 1
    mame_lab.remove(unet)
    assert [type(module) for module in unet.modules()] == types
    assert not unet._forward_pre_hooks
    assert torch.equal(run(unet), plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [(8, 12), (12, 8), (9, 6), (7, 5)])
def test_any_grid_and_batch(kind, grid):
    unet = mame_lab.apply(unet_of(kind), r=0.5)
    given = inputs(3, *grid)
    merged = run(unet, **given)
    assert merged.shape == given["sample"].shape
    alone = run(unet, **{name: x[1:2] if x.dim() else x for name, x in given.items()})
    torch.testing.assert_close(alone, merged[1:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", GRID)
def test_every_method_for_grids_merges_and_is_removed(name):
    unet = unet_of()
    plain = run(unet)
    merged = []
    for given in (inputs(3), {key: x[1:2] if x.dim() else x for key, x in inputs(3).items()}):
        torch.manual_seed(0)
        merged.append(run(mame_lab.apply(unet, GRID[name](r=0.5)), **given))
    torch.testing.assert_close(merged[0][1:2], merged[1], rtol=1e-12, atol=1e-12)
    assert library_of(unet).tokens(unet, inputs()["sample"]) == [48, 12, 6]
    assert not torch.equal(run(unet), plain)
    assert torch.equal(run(mame_lab.remove(unet)), plain)


@pytest.mark.parametrize("name", GRID)
def test_copies_are_neutral(name):
    """Equal tokens merge, are attended to by their size, and are restored: nothing changes."""
    method = GRID[name](r=0.75, prop_attn=True)
    attention = Attention(16, heads=2, dim_head=8).double().eval()
    generator = torch.Generator().manual_seed(0)
    cells_BHWC = torch.randn(2, 3, 5, 16, generator=generator, dtype=torch.float64)
    cells_BHWC[:, 0] = cells_BHWC[:, 0, :1]  # Unequal multiplicities.
    x_BNC = cells_BHWC.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    expected = attention(x_BNC)
    attention.__class__ = MergingAttention
    attention.level = 0
    merging = UNetMergeContext(method, method.schedule_for(3), (6, 10))
    assert merging.plan(0, x_BNC).index_BK.shape[1] == 15
    torch.testing.assert_close(attention(x_BNC, merging=merging), expected, rtol=1e-12, atol=1e-12)


def test_sizes_do_not_matter_without_proportional_attention():
    unet = unet_of()
    with_bias = run(mame_lab.apply(unet, Ward(r=0.5)))
    assert not torch.allclose(run(mame_lab.apply(unet, Ward(r=0.5, prop_attn=False))), with_bias)


def test_attention_sees_the_tokens_that_are_said(monkeypatch):
    unet = mame_lab.apply(unet_of(), Ward(r=[0.5, 0.25, 0]))
    seen = []
    forward = Attention.forward
    monkeypatch.setattr(Attention, "forward", lambda self, x, *a, **k: seen.append((type(self), x.shape[1])) or forward(self, x, *a, **k))  # fmt: skip  # noqa: E501
    run(unet)
    tokens = [count for kind, count in seen if kind is MergingAttention]
    assert tokens == [48, 18, 6, 18, 18, 48, 48]
    assert library_of(unet).tokens(unet, inputs()["sample"]) == [48, 18, 6]
    assert library_of(unet).tokens(mame_lab.remove(unet), inputs()["sample"]) == [96, 24, 6]


def test_a_grid_is_told_by_rows_and_columns(monkeypatch):
    unet = mame_lab.apply(unet_of(), Ward(r=0.5))
    grids, match = [], Ward.match
    monkeypatch.setattr(Ward, "match", lambda self, x, grid: grids.append(grid) or match(self, x, grid))
    run(unet, **inputs(1, 8, 12))
    assert grids == [(8, 12), (4, 6), (4, 6), (4, 6), (8, 12), (8, 12)]


def test_by_default_the_finer_two_thirds_of_the_resolutions_merge():
    unet = mame_lab.apply(unet_of(), r=0.5)
    assert library_of(unet).tokens(unet, inputs()["sample"]) == [48, 12, 6]
    mame_lab.apply(unet, Ward(r=0.5, blocks=1))
    assert library_of(unet).tokens(unet, inputs()["sample"]) == [48, 24, 6]


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "mid_block_type": None}, [48]),
        ({"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}, [12]),
        ({"down_block_types": ("CrossAttnDownBlock2D",) * 2, "only_cross_attention": (True, False)}, [12]),
    ],
)
def test_a_unet_with_self_attention_at_one_resolution_merges_there(changes, tokens):
    ups = tuple(name.replace("Down", "Up") for name in reversed(changes["down_block_types"]))
    sizes = {"block_out_channels": (16, 32), "attention_head_dim": (2, 4), "up_block_types": ups}
    unet = UNet2DConditionModel(**SMALL | sizes | changes).double().eval()
    plain = run(unet)
    assert not torch.equal(run(mame_lab.apply(unet, r=0.5)), plain)
    assert library_of(unet).tokens(unet, inputs()["sample"]) == tokens


@pytest.mark.parametrize("slices", [1, "auto"])
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_attention_slicing_before_or_after(slices, kind):
    unet = mame_lab.apply(unet_of(kind), r=0.5)
    merged = run(unet)
    unet.set_attention_slice(slices)
    assert not torch.equal(run(unet), merged)
    torch.testing.assert_close(run(unet), merged, rtol=1e-4, atol=1e-5)
    sliced = run(unet)
    assert torch.equal(run(mame_lab.apply(mame_lab.remove(unet), r=0.5)), sliced)


def test_what_the_user_hands_to_attention_still_arrives():
    heard = []

    class Listening(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, *args, strength=None, **kwargs):
            heard.append(strength)
            return super().__call__(attn, hidden_states, *args, **kwargs)

    unet = unet_of()
    unet.set_attn_processor(Listening())
    run(mame_lab.apply(unet, r=0.5), cross_attention_kwargs={"strength": 3})
    assert heard == [3] * len(unet.attn_processors)


def test_under_autocast_the_choice_is_made_in_full_precision(monkeypatch):
    unet = mame_lab.apply(UNet2DConditionModel(**KINDS["sd1"]).eval(), r=0.5)
    types, match = [], Ward.match
    monkeypatch.setattr(
        Ward, "match", lambda self, x, grid: types.append((found := match(self, x, grid)).score_BS.dtype) or found
    )
    given = {name: x.float() if x.is_floating_point() else x for name, x in inputs().items()}
    with torch.autocast("cpu", torch.bfloat16):
        run(unet, **given)
    assert set(types) == {torch.float32}


def test_attention_arguments_by_position_are_refused():
    unet = mame_lab.apply(unet_of(), r=0.5)
    with pytest.raises(MameLabError, match="cross_attention_kwargs by keyword"):
        unet(*inputs().values(), None, None, None, {})


def test_copies_and_files_of_a_merging_unet():
    unet = mame_lab.apply(unet_of(), r=0.5)
    merged = run(unet)
    copied = copy.deepcopy(unet)
    assert torch.equal(run(copied), merged)
    shared = shared_copy(unet)
    assert {id(p) for p in shared.parameters()} == {id(p) for p in unet.parameters()}
    mame_lab.remove(shared)
    assert not merges(shared)
    assert torch.equal(run(unet), merged)
    file = io.BytesIO()
    torch.save(unet, file)
    file.seek(0)
    assert torch.equal(run(torch.load(file, weights_only=False)), merged)


def test_training_and_gradient_checkpointing():
    unet = mame_lab.apply(unet_of(), r=0.5).train()
    unet(**inputs()).sample.square().mean().backward()
    gradients = [parameter.grad.clone() for parameter in unet.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    unet.zero_grad()
    unet.enable_gradient_checkpointing()
    unet(**inputs()).sample.square().mean().backward()
    for parameter, gradient in zip(unet.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.slow
def test_compiles_into_one_graph():
    unet = mame_lab.apply(unet_of(), r=0.5)
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled), run(unet))


@pytest.mark.parametrize(
    ("method", "named"),
    [
        (Ward(), "has no budget, which a U-Net needs: set mame.r"),
        (Ward(tau=0.9), "has no budget"),
        (ToMe(r=0.5), "cannot merge in a U-Net: choose from ward, mame, tomesd"),
        (Drop(r=0.5), "cannot merge in a U-Net: choose from ward, mame, tomesd"),
        (MaMe(r=0.5, tau=0.5), "mame.tau=0.5 has no meaning in a U-Net"),
        (Ward(r=[0.5, 0.5]), "one for each of the 3 blocks"),
        (Ward(flops=0.5), "has a target, which no U-Net is solved for"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(method, named):
    unet = mame_lab.apply(unet_of(), r=0.25)
    merged = run(unet)
    with pytest.raises(MameLabError, match=named):
        mame_lab.apply(unet, method)
    assert torch.equal(run(unet), merged)


def test_more_than_the_sources_is_an_error_that_names_the_resolution():
    unet = mame_lab.apply(unet_of(), Ward(r=0.8))
    with pytest.raises(MameLabError, match=r"mame.r=0.8 is too large for block 0: 96 .* of which 72 are sources"):
        run(unet)
    run(mame_lab.apply(unet, ToMeSD(r=0.7)))


@pytest.mark.parametrize(
    ("method", "named"),
    [
        (Ward(r=2, grid=Grid(window=8)), "mame.grid=.* is for U-Nets"),
        (ToMeSD(r=2), "mame=tomesd merges in U-Nets only: choose another for a vision transformer"),
    ],
)
def test_what_is_for_grids_is_refused_by_a_vision_transformer(method, named):
    with pytest.raises(MameLabError, match=named):
        mame_lab.apply(build("vit"), method)


def test_tokens_that_are_restored_are_not_followed():
    with pytest.raises(UnsupportedModelError, match=r"solve and mame_lab.summary do not take a UNet2DConditionModel"):
        mame_lab.solve(unet_of(), Ward(flops=0.5), inputs()["sample"])
    with pytest.raises(UnsupportedModelError, match="benchmark=denoiser"):
        mame_lab.summary(unet_of(), inputs()["sample"])


class OwnTransformer(Transformer2DModel):
    pass


def test_what_is_not_known_is_refused():
    class OwnUNet(UNet2DConditionModel):
        pass

    with pytest.raises(UnsupportedModelError, match="OwnUNet"):
        mame_lab.apply(OwnUNet(**SMALL), r=0.5)
    unet = unet_of()
    unet.mid_block.attentions[0].__class__ = OwnTransformer
    with pytest.raises(UnsupportedModelError, match=r"transformers of class .*OwnTransformer"):
        mame_lab.apply(unet, r=0.5)
    unet = unet_of()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.forward = partial(attention.forward)
    with pytest.raises(UnsupportedModelError, match="was replaced: undo that patch"):
        mame_lab.apply(unet, r=0.5)
    assert not merges(unet)
