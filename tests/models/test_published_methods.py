"""The published methods in whole models: what holds for all methods, in a family with a class token, one with more."""

import pytest
import torch
from families import DEPTH, build, copies, features, inputs, logits, logits_of_features

import mame_lab
from mame_lab.merging import ATC, MCTF, EViT, PiToMe, ToFu
from mame_lab.models import family_of

PUBLISHED = {method().method: method(r=6, blocks=[1, 4]) for method in (PiToMe, ToFu, MCTF, ATC, EViT)}

each = pytest.mark.parametrize("method", PUBLISHED.values(), ids=PUBLISHED)
in_two = pytest.mark.parametrize("family", ["vit", "dinov3"])


@each
@in_two
@torch.no_grad()
def test_it_merges_by_sample_and_is_removed_again(family, method):
    model, x = build(family), inputs(family)
    plain, (plain_last, plain_blocks) = logits(model, x), features(model, x)
    mame_lab.apply(model, method)
    together = logits(model, x)
    tokens_DB = torch.stack(family_of(model).trace(model, x)) - model.num_prefix_tokens
    assert tokens_DB.tolist() == [[64] * 4, *[[58] * 4] * 3, *[[52] * 4] * 2]
    for rows in ([2], [3, 1]):
        torch.testing.assert_close(logits(model, x[rows]), together[rows], rtol=1e-11, atol=1e-12)
    last, by_block = features(model, x)
    assert last.shape == plain_last.shape
    assert torch.equal(by_block[0], plain_blocks[0])
    assert not torch.equal(by_block[1], plain_blocks[1])
    torch.testing.assert_close(logits_of_features(model, x), together, rtol=1e-11, atol=1e-12)
    assert torch.equal(logits(mame_lab.remove(model), x), plain)


@each
@in_two
def test_copies_are_neutral_where_it_is_said(family, method):
    model = build(family)
    x = copies(model)
    with torch.no_grad():
        expected = logits(model, x)
        merged = logits(mame_lab.apply(model, method), x)
    near = (merged - expected).norm() <= 1e-11 * expected.norm()
    assert near or "copies" in method.gives_up


@each
def test_gradients_and_half_precision_are_finite(method):
    model, x = mame_lab.apply(build("vit").train(), method), inputs("vit")
    logits(model, x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert logits(model.float(), x.float()).isfinite().all()


@each
@torch.no_grad()
def test_one_graph_where_it_is_said(method):
    torch.compiler.reset()
    model, x = mame_lab.apply(build("vit", depth=1), type(method)(r=6, blocks=[0])), inputs("vit", 2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    if "graph" in method.gives_up:
        with pytest.raises(torch._dynamo.exc.Unsupported):
            compiled(x)
    else:
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("family", "name"), [("siglip", "VisionTransformer"), ("videomae", "videomae")])
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
