"""What must hold for every model family that can be merged."""

import copy
import io

import pytest
import torch
from families import DEPTH, FAMILIES, GRID, build, copies, images
from torch import nn

import mame_lab
from mame_lab.merging import MaMe
from mame_lab.models import unmerged_twin

pytestmark = pytest.mark.parametrize("family", FAMILIES)

BUDGETS = {"budget": MaMe(r=5), "budget, spread": MaMe(r=0.1, tau=0.5)}
ADAPTIVE = {"adaptive": MaMe(tau=0.8, blocks=DEPTH)}
SINGLES = BUDGETS | ADAPTIVE
ALL = SINGLES | {"union": MaMe(tau=0.3, batch="union", blocks=DEPTH)}


def every(methods):
    return pytest.mark.parametrize("method", methods.values(), ids=methods.keys())


@torch.no_grad()
def forward(model: nn.Module, x: torch.Tensor, method: MaMe | None = None) -> torch.Tensor:
    return (model if method is None else mame_lab.apply(model, method))(x)


class Spy(MaMe):
    """Records the tokens that enter the first merge."""

    def plan(self, x_BNC, valid_BN, prefix, leave):
        if not hasattr(self, "seen"):
            self.seen = x_BNC.detach().clone()
        return super().plan(x_BNC, valid_BN, prefix, leave)


@pytest.mark.parametrize("settings", [{"r": 0}, {"tau": 1}, {"r": [0] * DEPTH}, {"blocks": 0}], ids=repr)
def test_off_is_the_plain_model(family, settings):
    model, x = build(family), images()
    expected = forward(model, x)
    assert torch.equal(forward(model, x, MaMe(**settings)), expected)
    assert type(mame_lab.remove(model)) is type(build(family))


@pytest.mark.parametrize("mode", ["eval", "train", "checkpointing"])
def test_before_the_first_merge_nothing_differs(family, mode):
    model = build(family, drop_path_rate=0.3, proj_drop_rate=0.1).train(mode != "eval")
    model.set_grad_checkpointing(mode == "checkpointing")
    last, seen = model.blocks[-1], {}
    hook = last.norm2.register_forward_pre_hook(lambda _, args: seen.update(x=args[0].detach().clone()))
    torch.manual_seed(7)
    model(images())
    hook.remove()
    spy = Spy(r=[0] * (DEPTH - 1) + [5])
    torch.manual_seed(7)
    mame_lab.apply(model, spy)(images())
    assert torch.equal(spy.seen, seen["x"])


@every(ALL)
def test_remove_gives_the_model_back(family, method):
    model, x = build(family), images()
    expected, keys = forward(model, x), list(model.state_dict())
    forward(model, x, method)
    assert list(model.state_dict()) == keys
    assert not torch.equal(forward(model, x), expected)
    assert torch.equal(forward(mame_lab.remove(model), x), expected)
    assert {type(m) for m in model.modules()} == {type(m) for m in build(family).modules()}


def test_applying_again_replaces(family):
    model, x = build(family), images()
    mame_lab.apply(model, tau=0.8)
    assert torch.equal(forward(model, x, MaMe(r=3)), forward(build(family), x, MaMe(r=3)))


def test_a_refused_schedule_leaves_the_model_as_it_was(family):
    model, x = build(family), images()
    expected = forward(model, x, MaMe(r=3))
    with pytest.raises(mame_lab.MameLabError, match=r"mame.r=40 is too large for block 0"):
        mame_lab.apply(model, r=40)
    assert torch.equal(forward(model, x), expected)


@every({"adaptive": MaMe(tau=1 - 1e-9, blocks=DEPTH), "budget": MaMe(r=4), "budget, spread": MaMe(r=4, tau=0.999)})
def test_copies_are_neutral(family, method):
    model = build(family)
    x = copies(model)
    expected = forward(model, x)
    merged = forward(model, x, method)
    assert (model.trace(x)[-1] < GRID * GRID - 8).all()
    assert (merged - expected).norm() <= 1e-12 * expected.norm()


@every(SINGLES)
def test_a_result_does_not_depend_on_the_batch(family, method):
    model, x = build(family), images(5)
    together = forward(model, x, method)
    if method.r is None:
        assert model.trace(x)[-1].unique().numel() > 2
    for rows in ([0], [4], [3, 1], [4, 3, 2, 1, 0]):
        torch.testing.assert_close(forward(model, x[rows]), together[rows], rtol=1e-12, atol=1e-12)
        for alone, batch in zip(model.trace(x[rows]), model.trace(x), strict=True):
            assert torch.equal(alone, batch[rows])
        assert_same_selection(model, x, rows)


def assert_same_selection(model, x, rows):
    with torch.no_grad():
        alone, batch = model.encode(x[rows], record=True)[1], model.encode(x, record=True)[1]
    for a, b in zip(alone.plans, batch.plans, strict=True):
        for i, row in enumerate(rows):
            tokens = int(a.tokens()[i])
            assert torch.equal(a.index_BK[i, :tokens], b.index_BK[row, :tokens])


@every(SINGLES)
def test_float32_moves_no_more_with_the_batch_than_timm(family, method):
    model, x = build(family).float(), images(5).float()
    plain, merged = forward(model, x), forward(mame_lab.apply(model, method), x)
    moved = (forward(model, x[2:3]) - merged[2]).norm() / merged.norm()
    plain_moved = (forward(mame_lab.remove(model), x[2:3]) - plain[2]).norm() / plain.norm()
    assert moved <= 4 * plain_moved + 4 * torch.finfo(torch.float32).eps


@every(ALL)
def test_gradients_are_finite_and_checkpointing_keeps_them(family, method):
    model, x = mame_lab.apply(build(family).train(), method), images()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(g.isfinite().all() for g in gradients[0])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-12, atol=1e-14)


@every(ALL)
def test_features_have_the_shapes_of_timm(family, method):
    model, x = build(family), images()
    options = {"indices": [1, DEPTH - 1], "norm": True, "output_dict": True, "return_prefix_tokens": True}
    plain, tokens = model.forward_intermediates(x, **options), model.forward_features(x)
    merged = mame_lab.apply(model, method).forward_intermediates(x, **options)
    assert shapes(merged) == shapes(plain)
    assert model.forward_features(x).shape == tokens.shape
    assert torch.equal(merged["image_features"], model.forward_features(x))
    grid = merged["image_intermediates"][-1]
    assert torch.equal(merged["image_features"][:, model.num_prefix_tokens :].mT.unflatten(2, (GRID, GRID)), grid)


def shapes(features) -> dict:
    return {
        key: value.shape if isinstance(value, torch.Tensor) else [v.shape for v in value]
        for key, value in features.items()
    }


def test_intermediates_of_copies_are_those_of_the_plain_model(family):
    """Restored grids are in the right order, at any depth."""
    model = build(family)
    x = copies(model)
    expected = model.forward_intermediates(x, output_dict=True)
    restored = mame_lab.apply(model, r=4).forward_intermediates(x, output_dict=True)
    for plain, merged in zip(expected["image_intermediates"], restored["image_intermediates"], strict=True):
        torch.testing.assert_close(merged, plain, rtol=1e-11, atol=1e-11)
    stopped = model.forward_intermediates(x, [2], stop_early=True, intermediates_only=True, output_fmt="NLC")
    torch.testing.assert_close(stopped[0], restored["image_intermediates"][2].flatten(2).mT)


def test_head_on_features_equals_forward(family):
    model, x = mame_lab.apply(build(family), r=5), images()
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x), rtol=1e-12, atol=1e-12)


@every(ALL)
def test_copied_and_saved_models_merge(family, method):
    model, x = build(family), images()
    expected = forward(model, x, method)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(forward(torch.load(file, weights_only=False), x), expected)
    assert torch.equal(forward(copy.deepcopy(model), x), expected)


def test_twin_shares_the_weights_and_does_not_merge(family):
    model, x = build(family), images()
    expected = forward(model, x)
    merged = forward(model, x, MaMe(r=5))
    twin = unmerged_twin(model)
    assert torch.equal(forward(twin, x), expected)
    assert torch.equal(forward(model, x), merged)
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every(ALL)
def test_half_precision_and_autocast(family, method, dtype):
    model, x = build(family).float(), images().float()
    expected = forward(model, x, method)
    with torch.autocast("cpu", dtype):
        autocast = forward(model, x)
    half = forward(model.to(dtype), x.to(dtype))
    assert half.dtype == dtype
    assert autocast.isfinite().all()
    assert half.isfinite().all()
    if method.r is not None:
        assert (autocast - expected).norm() < 0.5 * expected.norm()


def test_without_proportional_attention_sizes_do_not_matter_to_it(family):
    model, x = build(family), images()
    assert not torch.equal(forward(model, x, MaMe(r=5)), forward(model, x, MaMe(r=5, prop_attn=False)))
    with torch.no_grad():
        assert model.encode(x)[1].bias_B11N is None


def test_masks_are_refused(family):
    model = mame_lab.apply(build(family), r=5)
    with pytest.raises(mame_lab.MameLabError, match="attn_mask"):
        model(images(), attn_mask=torch.zeros(1, 1, 1, 64))
