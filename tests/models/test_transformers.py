"""transformers' own traits: what is refused, and what its outputs stay."""

import pytest
import torch
import transformers
from families import (
    DEPTH,
    GRID,
    SMALL,
    TOWERS,
    TRANSFORMERS,
    backbone,
    blocks,
    build,
    copies,
    inputs,
    logits,
    logits_of_features,
)
from torch import nn
from torch.nn import functional as F
from transformers.models.vit.modeling_vit import ViTAttention, ViTLayer

import mame_lab
from mame_lab.merging import Drop, ToMe
from mame_lab.models import family_of

every_family = pytest.mark.parametrize("name", TRANSFORMERS)
LABELS = torch.tensor([0, 1, 2, 3])


class OverridingModel(transformers.ViTForImageClassification):
    pass


class OverridingLayer(ViTLayer):
    pass


class OverridingAttention(ViTAttention):
    pass


def with_part(at: str, cls: type) -> nn.Module:
    model = build("hf_vit", depth=1)
    model.get_submodule(at).__class__ = cls
    return model


def with_attention(implementation: str) -> nn.Module:
    model = build("videomae", depth=1)
    model.set_attn_implementation(implementation)
    return model


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: with_part("", OverridingModel), "OverridingModel: it has a forward pass of its own"),
        (lambda: with_part("vit.layers.0", OverridingLayer), "layers of class .*OverridingLayer"),
        (lambda: with_part("vit.layers.0.attention", OverridingAttention), "attention of class .*OverridingAttention"),
        (lambda: transformers.DeiTModel(transformers.DeiTConfig(num_hidden_layers=1)), "DeiTModel"),
        (lambda: build("videomae", depth=1, use_mean_pooling=False), "first patch"),
        (lambda: with_attention("eager"), r"here it is eager: call model.set_attn_implementation\('sdpa'\)"),
    ],
)
def test_refused_with_the_class_and_what_is_supported(make, named):
    model = make()
    types = [type(module) for module in model.modules()]
    with pytest.raises(TypeError, match=named) as error:
        mame_lab.apply(model, r=1)
    assert "\n" not in str(error.value)
    assert [type(module) for module in model.modules()] == types


@every_family
@pytest.mark.parametrize("part", [lambda model: model, backbone], ids=["model", "backbone"])
@pytest.mark.parametrize("implementation", ["eager", {"": "eager"}], ids=str)
@torch.no_grad()
def test_attention_changed_afterwards_is_refused_too(name, part, implementation):
    model, x = mame_lab.apply(build(name, depth=2), r=2), inputs(name)
    merged = logits(model, x)
    part(model).set_attn_implementation(implementation)
    if name in TOWERS and backbone(model).config._attn_implementation == "sdpa":
        assert torch.equal(logits(model, x), merged)  # The tower's own configuration decides.
        return
    for call in (model, backbone(model), lambda x: mame_lab.apply(model, r=3)):
        with pytest.raises(TypeError, match=r"here it is eager: call model.set_attn_implementation\('sdpa'\)"):
            call(x)
    model.set_attn_implementation("sdpa")
    assert torch.equal(logits(model, x), merged)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(logits(mame_lab.remove(model), x), logits(build(name, depth=2), x))


@every_family
def test_attentions_are_refused(name):
    model = mame_lab.apply(build(name, depth=2), r=2)
    for call in (model, backbone(model)):
        with pytest.raises(mame_lab.MameLabError, match="output_attentions has no meaning while tokens merge"):
            call(inputs(name), output_attentions=True)
    model.set_attn_implementation("eager")
    backbone(model).config.output_attentions = True
    model.set_attn_implementation("sdpa")
    with pytest.raises(mame_lab.MameLabError, match="output_attentions has no meaning while tokens merge"):
        model(inputs(name))


@every_family
@pytest.mark.parametrize("asked", [True, False, None, 0, 3, -1, [1, -1], (0, 2), [-7, 99], [99], []], ids=str)
@torch.no_grad()
def test_hidden_states_are_those_that_are_asked_for(name, asked):
    """transformers puts None in the place of the others."""
    x, plain = inputs(name), build(name)
    model = mame_lab.apply(build(name), r=3)
    for found, expected in ((model, plain), (backbone(model), backbone(plain))):
        every = found(x, output_hidden_states=True).hidden_states
        for given in ({"output_hidden_states": asked}, {}):
            found.config.output_hidden_states = expected.config.output_hidden_states = not given and asked
            states, of_plain = (each(x, **given).hidden_states for each in (found, expected))
            if of_plain is None:
                assert states is None
                continue
            for state, at, one in zip(states, of_plain, every, strict=True):
                assert (state is None) == (at is None)
                assert state is None or torch.equal(state, one)


@every_family
@torch.no_grad()
def test_a_classifier_merges_though_its_backbone_does(name):
    model, x = build(name), inputs(name)
    plain, merged = logits(model, x), logits(mame_lab.apply(build(name), r=3), x)
    mame_lab.apply(backbone(model), r=5)
    assert not torch.equal(logits(model, x), plain)
    assert torch.equal(logits(mame_lab.apply(model, r=3), x), merged)
    assert torch.equal(logits(mame_lab.remove(model), x), plain)


def test_reentrant_checkpoints_are_refused():
    model = mame_lab.apply(build("hf_vit", depth=2).train(), r=2)
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(mame_lab.MameLabError, match="use_reentrant=True loses gradients"):
        model(inputs("hf_vit"))


@every_family
@torch.no_grad()
def test_outputs_are_those_of_transformers(name):
    model, x = build(name), inputs(name)
    asked = {"pixel_values": x, "labels": LABELS, "output_hidden_states": True}
    plain = model(**asked)
    merged = mame_lab.apply(model, r=3)(**asked)
    assert type(merged) is type(plain)
    assert merged.keys() == plain.keys()
    assert [y.shape for y in merged.hidden_states] == [y.shape for y in plain.hidden_states]
    assert torch.equal(merged.hidden_states[0], plain.hidden_states[0])
    torch.testing.assert_close(merged.loss, F.cross_entropy(merged.logits, LABELS))
    torch.testing.assert_close(model(x, LABELS, num_items_in_batch=8).loss, merged.loss / 2)
    loss, scores = model(x, LABELS, return_dict=False)
    assert torch.equal(loss, merged.loss)
    assert torch.equal(scores, merged.logits)
    assert not torch.equal(scores, plain.logits)


@every_family
@torch.no_grad()
def test_a_backbone_by_itself_gives_the_full_grid(name):
    model, x = backbone(build(name)), inputs(name)
    plain, types = model(x), [type(module) for module in model.modules()]
    merged = mame_lab.apply(model, r=5)(x)
    assert {key: value.shape for key, value in merged.items()} == {key: value.shape for key, value in plain.items()}
    assert not torch.equal(merged.last_hidden_state, plain.last_hidden_state)
    tokens = [block.tokens for block in mame_lab.summary(model, x).blocks]
    assert tokens == [plain.last_hidden_state.shape[1] - 5 * min(left, 4) for left in range(1, DEPTH + 1)]
    mame_lab.remove(model)
    assert torch.equal(model(x).last_hidden_state, plain.last_hidden_state)
    assert [type(module) for module in model.modules()] == types


@torch.no_grad()
def test_registers_never_merge():
    model = build("hf_registers")
    x = copies(model)
    expected = logits(model, x)
    mame_lab.apply(model, r=6, blocks=DEPTH)
    torch.testing.assert_close(logits(model, x), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(logits_of_features(model, x), expected, rtol=1e-11, atol=1e-11)
    plan = family_of(model).plans(model, x)[-1]
    assert (plan.prefix, plan.index_BK[:, :5].tolist()) == (5, [[0, 1, 2, 3, 4]] * len(x))


@torch.no_grad()
def test_dropped_patches_do_not_count_in_the_mean():
    model, seen = build("hf_dinov2"), []
    mame_lab.apply(model, Drop(r=5))
    model.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = inputs("hf_dinov2")
    torch.manual_seed(0)
    model(x)
    torch.manual_seed(0)
    tokens_BKC = backbone(model).encode(x)[0]
    expected = torch.cat([tokens_BKC[:, 0], tokens_BKC[:, 1:].mean(1)], 1)
    torch.testing.assert_close(seen[0], expected)


class Keys(ToMe):
    """Remembers what it was given."""

    needs = frozenset({"keys", "input"})

    def plan(self, tokens, r):
        self.given = [*getattr(self, "given", ()), tokens]
        return super().plan(tokens, r)


@pytest.mark.parametrize(("name", "key"), [("videomae", "attention.attention.key"), ("hf_vit", "attention.k_proj")])
@torch.no_grad()
def test_keys_are_those_of_the_models_attention(name, key):
    model, method = build(name), Keys(r=5)
    mame_lab.apply(model, method)(inputs(name))
    for block, tokens in zip(blocks(model), method.given, strict=False):
        expected = block.get_submodule(key)(tokens.input_BNC).unflatten(2, (SMALL["num_heads"], -1)).mean(2)
        torch.testing.assert_close(tokens.mean_key(), expected, rtol=1e-12, atol=1e-12)
    assert len(method.given) == DEPTH


@torch.no_grad()
def test_sizes_enter_an_attention_that_takes_no_mask():
    """What VideoMAE's attention gives is what its own eager attention would with the mask."""
    model, seen = mame_lab.apply(build("videomae"), r=20, blocks=1), {}
    attention = blocks(model)[1].attention.attention
    attention.register_forward_hook(lambda _, args, output: seen.update(input=args[0], output=output[0]))
    x = inputs("videomae")
    model(x)
    bias_B11N = backbone(model).encode(x)[1].bias_B11N
    q, k, v = (
        each(seen["input"]).unflatten(2, (SMALL["num_heads"], -1)).transpose(1, 2)
        for each in (attention.query, attention.key, attention.value)
    )
    y = ((q @ k.mT) * q.shape[-1] ** -0.5 + bias_B11N).softmax(-1) @ v
    torch.testing.assert_close(seen["output"], y.transpose(1, 2).flatten(2))


@torch.no_grad()
def test_images_of_other_sizes():
    model, x = mame_lab.apply(build("hf_vit"), r=5), torch.randn(2, 3, 48, 96, dtype=torch.float64)
    assert model(x, interpolate_pos_encoding=True).logits.shape == (2, SMALL["num_classes"])
    model = mame_lab.apply(build("hf_dinov2"), r=5)
    shown = mame_lab.summary(model, x)
    assert (shown.blocks[0].tokens, shown.blocks[0].tokens_unmerged) == (68, 73)


def test_videos_have_a_grid_in_time():
    model, x = build("videomae", depth=2), inputs("videomae")
    assert family_of(model).grid(model, x) == (4, 4, 4)
    assert family_of(build("hf_vit")).grid(build("hf_vit"), inputs("hf_vit")) == (GRID, GRID)
