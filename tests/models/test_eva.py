"""What timm's Eva adds: rotary embeddings that travel with their tokens, and weights in layouts of its own."""

import pytest
import torch
from families import DEPTH, build, images
from safetensors.torch import save_file
from timm.models.eva import Eva
from torch.nn.functional import interpolate

import mame_lab
from mame_lab.merging import Method, Ward
from mame_lab.models import family as family_named
from mame_lab.models.settings import ModelSettings

family = family_named("timm")
ROTARY = ["eva02", "dinov3", "rope_mixed", "perception"]
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
METHODS = {"budget": Ward(r=[3, 0, 5, 4, 0, 0]), "adaptive": Ward(tau=0.8)}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Eva(**TINY, use_post_norm=True), "EvaBlockPostNorm"),
        (lambda: Eva(**TINY, use_rot_pos_emb=True, rope_type="base"), "RotaryEmbedding"),
        (lambda: Eva(**TINY, global_pool="avgmax"), "'avgmax'"),
    ],
)
def test_refused_and_left_as_it_was(make, named):
    model = make()
    with pytest.raises(mame_lab.UnsupportedModelError, match=named):
        mame_lab.apply(model, r=1)
    assert type(model) is Eva


@pytest.mark.parametrize("patch_drop_rate", [0, 0.25], ids=["all patches", "patch dropout"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", ROTARY)
@torch.no_grad()
def test_rotary_embeddings_travel_with_their_tokens(name: str, method: Method, patch_drop_rate: float):
    """Every attention gives what timm's gives for one sample and the rows of the rotary embedding of its tokens."""
    model, x = build(name, patch_drop_rate=patch_drop_rate).train(), images()
    torch.manual_seed(0)
    x_BNC, rope = model._pos_embed(model.patch_embed(x))
    mame_lab.apply(model, method)
    calls = []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda *call: calls.append(call), with_kwargs=True)
    torch.manual_seed(0)
    plans = model.plans(x)
    places = [torch.arange(x_BNC.shape[1]) for _ in x]
    for index, (call, plan) in enumerate(zip(calls, plans, strict=True)):
        here = rope[index] if model.rope_mixed else rope
        for i, place_N in enumerate(places):
            patches = place_N[model.num_prefix_tokens :] - model.num_prefix_tokens
            expected, actual = alone(*call, i, (here[i] if patch_drop_rate else here)[..., patches, :])
            torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)
        if plan is not None:
            tokens_B = plan.tokens().tolist()
            places = [place_N[plan.index_BK[i, : tokens_B[i]]] for i, place_N in enumerate(places)]
    assert len({tuple(place_N.tolist()) for place_N in places}) > 2


def alone(attn, args, kwargs, y_BNC, sample, rope):
    """What an attention gives for one sample with other rotary embeddings, and what it gave for it in its batch."""
    rows, tokens = slice(sample, sample + 1), attn.num_prefix_tokens + rope.shape[-2]
    mask = kwargs["attn_mask"] if kwargs["attn_mask"] is None else kwargs["attn_mask"][rows, ..., :tokens]
    return attn.forward(args[0][rows, :tokens], rope=rope, attn_mask=mask), y_BNC[rows, :tokens]


@pytest.mark.parametrize("name", ROTARY)
@torch.no_grad()
def test_packed_samples_keep_their_rotary_embeddings(name: str):
    """Prefix tokens of every sample, which lie within the sequence, are not turned."""
    model, x = build(name), images()
    expected = mame_lab.apply(model, tau=0.8)(x)
    assert model.plans(x)[-1].tokens().unique().numel() > 1
    packed = mame_lab.apply(model, tau=0.8, batching="packed")(x)
    torch.testing.assert_close(packed, expected, rtol=1e-11, atol=1e-12)


def test_frequencies_that_are_learned_get_gradients_through_merged_blocks():
    model = mame_lab.apply(build("rope_mixed").train(), r=[5] + [0] * (DEPTH - 1))
    model(images()).square().sum().backward()
    gradient = model.rope.freqs.grad
    assert gradient.isfinite().all()
    assert (gradient.abs().sum((0, 2, 3)) > 0).all()


@pytest.mark.parametrize("name", ["dinov3", "rope_mixed"])
@torch.no_grad()
def test_images_that_are_not_square(name: str):
    """The grid of the image, given at once or found from the image, and restored."""
    fixed = mame_lab.apply(build(name, dynamic_img_size=False, img_size=(48, 96)), r=5)
    dynamic = mame_lab.apply(build(name, dynamic_img_size=True), r=5)
    dynamic.load_state_dict(fixed.state_dict())
    x = torch.randn(2, 3, 48, 96, dtype=torch.float64)
    torch.testing.assert_close(dynamic(x), fixed(x), rtol=1e-5, atol=1e-5)
    assert dynamic.forward_intermediates(x, 1, intermediates_only=True)[0].shape == (2, 48, 6, 12)


@torch.no_grad()
def test_dinov3_of_full_size():
    torch.manual_seed(0)
    model = family.load(ModelSettings(name="vit_small_patch16_dinov3", pretrained=False, img_size=224)).eval()
    x = interpolate(torch.randn(2, 3, 7, 7), size=224, mode="bilinear")
    plain = model(x)
    assert torch.equal(mame_lab.apply(model, r=0)(x), plain)
    assert mame_lab.apply(model, r=8)(x).isfinite().all()
    assert [int(tokens_B[0]) for tokens_B in family.trace(model, x)] == [201 - 8 * min(i, 8) for i in range(1, 13)]
    tokens_B = family.trace(mame_lab.apply(model, tau=0.5), x)[-1]
    assert (tokens_B < 201).all()
    assert torch.equal(mame_lab.remove(model)(x), plain)


def settings(**changes) -> ModelSettings:
    arguments = {key: value for key, value in TINY.items() if key != "img_size"}
    return ModelSettings(**{"img_size": 32, "num_classes": 3, "args": arguments, "pretrained": False} | changes)


def test_position_embedding_is_resampled_to_the_image_size(tmp_path):
    source, file = family.load(settings(name="eva02_tiny_patch14_224")), tmp_path / "w.safetensors"
    save_file(source.state_dict(), file)
    model = family.load(settings(name="eva02_tiny_patch14_224", img_size=64, num_classes=None, weights=str(file)))
    assert model.pos_embed.shape[1] == 65
    assert model.num_classes == 3
    assert torch.equal(model.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    assert family.data_config(model)["size"] == (64, 64)
    assert family.match_classes(model, 10)
    assert mame_lab.apply(model, r=5)(torch.randn(1, 3, 64, 64)).shape == (1, 10)


def test_weights_in_the_layout_of_their_authors(tmp_path):
    """DINOv3's names of registers and LayerScale."""
    source, file = family.load(settings(name="vit_small_patch16_dinov3", num_classes=0)), tmp_path / "w.safetensors"
    state = source.state_dict() | {"mask_token": torch.zeros(1, 48), "rope_embed.periods": torch.ones(4)}
    for ours, theirs in {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "reg_token": "storage_tokens"}.items():
        state = {key.replace(ours, theirs): tensor for key, tensor in state.items()}
    save_file(state, file)
    model = family.load(settings(name="vit_small_patch16_dinov3", num_classes=None, weights=str(file)))
    assert model.num_classes == 0
    for key, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor)
