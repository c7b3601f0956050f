"""What must hold for every model family that can be merged."""

import copy
import io
import math

import pytest
import torch
from families import (
    DEPTH,
    FAMILIES,
    GRID,
    TIMM,
    blocks,
    build,
    checkpointing,
    copies,
    features,
    images,
    inputs,
    logits,
    logits_of_features,
    norms,
)
from methods import budgets, keeping, not_random, thresholds
from torch import nn

import mame_lab
from mame_lab.measure.comparison import captured_input
from mame_lab.merging import Drop, MaMe, Method, ToMe, Ward
from mame_lab.merging.method import SequenceMethod
from mame_lab.models import family_of, unmerged_copy

BUDGETS = budgets(5, blocks=4) | {"mame, spread": MaMe(r=0.1, tau=0.5)}
ALONE = BUDGETS | thresholds(0.8, blocks=DEPTH)
ALL = (
    ALONE
    | thresholds(0.8, "packed", batching="packed", blocks=DEPTH)
    | thresholds(0.3, "union", batching="union", blocks=DEPTH)
)
# The two that look at all there is to see go with every family, the others with one of each way to pool.
EVERYWHERE = ("ward, adaptive", "tome")
POOLINGS = ("registers", "vit_avg", "siglip")
WITHOUT_CLASS_TOKEN = ("siglip", "videomae", "vit_avg", "zero_shot")

every_family = pytest.mark.parametrize("family", FAMILIES)


def every(methods: dict[str, SequenceMethod], everywhere: tuple[str, ...] = EVERYWHERE, families: list[str] = FAMILIES):
    return pytest.mark.parametrize(
        ("family", "method"),
        [
            pytest.param(family, method, id=f"{family}-{name}")
            for family in families
            for name, method in methods.items()
            if family in POOLINGS or name in everywhere
            if family not in WITHOUT_CLASS_TOKEN or "class_token" not in method.needs
        ],
    )


@torch.no_grad()
def forward(model: nn.Module, x: torch.Tensor, method: Method | None = None) -> torch.Tensor:
    torch.manual_seed(0)
    return logits(model if method is None else mame_lab.apply(model, method), x)


class Spy(Drop):
    """Records the tokens that enter the first merge."""

    def plan(self, tokens, r):
        if not hasattr(self, "seen"):
            self.seen = tokens
        return super().plan(tokens, r)


@every(
    budgets(0)
    | thresholds(1)
    | thresholds(1, "union", batching="union")
    | {"list": Ward(r=[0] * DEPTH), "blocks": Ward(blocks=0), "drop, blocks": Drop(r=5, blocks=0)},
    everywhere=("ward", "ward, adaptive"),
)
def test_off_is_the_plain_model(family, method):
    model, x = build(family), inputs(family)
    expected = forward(model, x)
    assert torch.equal(forward(model, x, method), expected)
    assert type(model) is type(build(family))


@every_family
@pytest.mark.parametrize("mode", ["eval", "train", "checkpointing"])
@pytest.mark.parametrize("needs", [frozenset(), frozenset({"keys", "queries"})], ids=["nothing", "attention"])
def test_before_the_first_merge_nothing_differs(family, mode, needs):
    model = build(family, drop_path_rate=0.3, proj_drop_rate=0.1).train(mode != "eval")
    checkpointing(model, mode == "checkpointing")
    (norm1, norm2), seen, x = norms(blocks(model)[-1]), {}, inputs(family)
    hooks = [
        norm1.register_forward_hook(lambda *call: seen.update(input=call[-1])),
        norm2.register_forward_pre_hook(lambda _, args: seen.update(x=args[0])),
    ]
    torch.manual_seed(7)
    model(x)
    for hook in hooks:
        hook.remove()
    spy = Spy(r=[0] * (DEPTH - 1) + [5])
    spy.needs = needs | {"input"}
    torch.manual_seed(7)
    mame_lab.apply(model, spy)(x)
    assert torch.equal(spy.seen.x_BNC, seen["x"])
    assert torch.equal(spy.seen.input_BNC, seen["input"])


@every(ALL)
def test_remove_gives_the_model_back(family, method):
    model, x = build(family), inputs(family)
    expected, keys = forward(model, x), list(model.state_dict())
    types = {type(module) for module in model.modules()}
    forward(model, x, method)
    assert list(model.state_dict()) == keys
    assert not torch.equal(forward(model, x), expected)
    assert torch.equal(forward(mame_lab.remove(model), x), expected)
    assert {type(module) for module in model.modules()} == types


@every_family
def test_applying_again_replaces(family):
    model, x = build(family), inputs(family)
    mame_lab.apply(model, tau=0.8, batching="packed")
    assert torch.equal(forward(model, x, MaMe(r=3)), forward(build(family), x, MaMe(r=3)))
    assert type(mame_lab.apply(model, r=0)) is type(build(family))


@every_family
def test_a_refused_schedule_does_not_change_the_model(family):
    model, x = build(family), inputs(family)
    expected = forward(model, x, MaMe(r=3))
    with pytest.raises(mame_lab.MameLabError, match=r"mame.r=40 is too large for block 0"):
        mame_lab.apply(model, r=40)
    with pytest.raises(mame_lab.MameLabError, match=r"mame=tome needs a budget"):
        mame_lab.apply(model, ToMe())
    assert torch.equal(forward(model, x), expected)


@every(
    keeping("copies", budgets(4, blocks=4))
    | {"mame, spread": MaMe(r=4, tau=0.999)}
    | thresholds(1 - 1e-9, blocks=DEPTH)
    | thresholds(1 - 1e-9, "packed", batching="packed", blocks=DEPTH),
    everywhere=("ward, adaptive", "mame, adaptive", "tome"),
)
def test_copies_are_neutral(family, method):
    model = build(family)
    x = copies(model)
    expected = forward(model, x)
    merged = forward(model, x, method)
    assert (trace(model, x)[-1] < GRID * GRID - 8).all()
    assert (merged - expected).norm() <= 1e-12 * expected.norm()


@torch.no_grad()
def trace(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return family_of(model).trace(model, x)


@every(not_random(ALONE))
def test_a_result_does_not_depend_on_the_batch(family, method):
    model, x = build(family), inputs(family, 5)
    together, plans = forward(model, x, method), selection(model, x)
    if method.r is None:
        assert len({len(sample[-1]) for sample in plans}) > 2
    for rows in ([0], [4], [3, 1], [4, 3, 2, 1, 0]):
        torch.testing.assert_close(forward(model, x[rows]), together[rows], rtol=1e-12, atol=1e-12)
        assert selection(model, x[rows]) == [plans[row] for row in rows]


@torch.no_grad()
def selection(model: nn.Module, x: torch.Tensor) -> list[list[list[int]]]:
    """For every sample and merge step, the places of the tokens that remain."""
    plans = [plan for plan in family_of(model).plans(model, x) if plan is not None]
    return [[plan.index_BK[b, : plan.tokens()[b]].tolist() for plan in plans] for b in range(len(x))]


@every(not_random(ALONE))
def test_float32_moves_no_more_with_the_batch_than_timm(family, method):
    model, x = build(family).float(), inputs(family, 5).float()
    plain, merged = forward(model, x), forward(mame_lab.apply(model, method), x)
    moved = (forward(model, x[2:3]) - merged[2]).norm() / merged.norm()
    plain_moved = (forward(mame_lab.remove(model), x[2:3]) - plain[2]).norm() / plain.norm()
    assert moved <= 4 * plain_moved + 4 * torch.finfo(torch.float32).eps


@every(ALL)
def test_gradients_are_finite_and_checkpointing_keeps_them(family, method):
    model, x = mame_lab.apply(build(family).train(), method), inputs(family)
    gradients = []
    for enable in (False, True):
        checkpointing(model, enable)
        model.zero_grad()
        torch.manual_seed(0)
        logits(model, x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(g.isfinite().all() for g in gradients[0])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-12, atol=1e-14)


@every(ALL, families=sorted(TIMM))
@torch.no_grad()
def test_features_have_the_shapes_of_timm(family, method):
    model, x = build(family), images()
    options = {"indices": [1, DEPTH - 1], "norm": True, "return_prefix_tokens": True}
    plain = model.forward_intermediates(x, **options)
    mame_lab.apply(model, method)
    torch.manual_seed(0)
    features, intermediates = model.forward_intermediates(x, **options)
    assert shapes([features, intermediates]) == shapes(plain)
    torch.manual_seed(0)
    assert torch.equal(features, model.forward_features(x))
    last = intermediates[-1][0] if model.num_prefix_tokens else intermediates[-1]
    assert torch.equal(features[:, model.num_prefix_tokens :].mT.unflatten(2, (GRID, GRID)), last)


def shapes(features) -> list:
    return features.shape if isinstance(features, torch.Tensor) else [shapes(each) for each in features]


@every({"ward": Ward(r=4), "packed": Ward(tau=1 - 1e-9, batching="packed")})
@torch.no_grad()
def test_intermediates_of_copies_are_those_of_the_plain_model(family, method):
    """Restored grids are in the right order, at any depth."""
    model = build(family)
    x = copies(model)
    expected = features(model, x)
    restored = features(mame_lab.apply(model, method), x)
    for plain, merged in zip([expected[0], *expected[1]], [restored[0], *restored[1]], strict=True):
        torch.testing.assert_close(merged, plain, rtol=1e-11, atol=1e-11)


@every({"off": Ward(r=0)} | ALL, ("off", *EVERYWHERE))
@torch.no_grad()
def test_one_pass_gives_the_feature_and_the_patch_tokens(family, method):
    """The feature is what enters the head in `forward`, the tokens are those of the full grid without the prefix."""
    model, x = mame_lab.apply(build(family), method), inputs(family)
    torch.manual_seed(0)
    feature_BC, patches_BNC = family_of(model).feature_and_patches(model, x)
    with captured_input(family_of(model).classifier(model)) as captured:
        forward(model, x)
    torch.manual_seed(0)
    expected_BNC, _ = features(model, x)
    assert torch.equal(feature_BC, captured[0])
    assert patches_BNC.shape[1] == math.prod(family_of(model).grid(model, x))
    assert torch.equal(patches_BNC, expected_BNC[:, -patches_BNC.shape[1] :])


@pytest.mark.parametrize("family", sorted(TIMM))
@torch.no_grad()
def test_intermediates_stop_early(family):
    model, x = mame_lab.apply(build(family), r=4), images()
    expected = model.forward_intermediates(x, [2], intermediates_only=True)
    (stopped,) = model.forward_intermediates(x, [2], stop_early=True, intermediates_only=True, output_fmt="NLC")
    assert torch.equal(stopped, expected[0].flatten(2).mT)


@every_family
def test_head_on_features_equals_forward(family):
    model, x = mame_lab.apply(build(family), r=5), inputs(family)
    torch.testing.assert_close(logits_of_features(model, x), logits(model, x), rtol=1e-12, atol=1e-12)


@every(ALL)
def test_copied_and_saved_models_merge(family, method):
    model, x = build(family), inputs(family)
    expected = forward(model, x, method)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(forward(torch.load(file, weights_only=False), x), expected)
    assert torch.equal(forward(copy.deepcopy(model), x), expected)


@every_family
def test_unmerged_copy_shares_the_weights(family):
    model, x = build(family), inputs(family)
    expected = forward(model, x)
    merged = forward(model, x, MaMe(r=5))
    shared_copy = unmerged_copy(model)
    assert torch.equal(forward(shared_copy, x), expected)
    assert torch.equal(forward(model, x), merged)
    assert all(a is b for a, b in zip(model.parameters(), shared_copy.parameters(), strict=True))


@every(ALL, everywhere=("ward, adaptive",))
def test_half_precision_and_autocast(family, method):
    model, x = build(family).float(), inputs(family, 2).float()
    expected = forward(model, x, method)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            autocast = forward(model, x)
        half = forward(copy.deepcopy(model).to(dtype), x.to(dtype))
        assert half.dtype == dtype
        assert autocast.isfinite().all()
        assert half.isfinite().all()
        if method.r is not None:
            assert (autocast - expected).norm() < 0.5 * expected.norm()


@every(budgets(6, blocks=[1, 4]))
@torch.no_grad()
def test_a_budget_is_removed_in_the_blocks_that_merge(family, method):
    model, x = build(family), inputs(family, 2)
    all_of = int(trace(model, x)[0][0])
    _, plain = features(model, x)
    torch.manual_seed(0)
    _, merged = features(mame_lab.apply(model, method), x)
    assert torch.stack(trace(model, x)).tolist() == [[all_of - r] * 2 for r in (0, 6, 6, 6, 12, 12)]
    assert torch.equal(merged[0], plain[0])
    assert not torch.equal(merged[1], plain[1])


@pytest.mark.parametrize("method", BUDGETS.values(), ids=BUDGETS)
@torch.no_grad()
def test_one_graph_where_it_is_said(method):
    torch.compiler.reset()
    model, x = mame_lab.apply(build("vit", depth=1), method.with_budget(6, blocks=[0])), inputs("vit", 2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    if "graph" in method.gives_up:
        with pytest.raises(torch._dynamo.exc.Unsupported):
            compiled(x)
        return
    found = []
    for each in (compiled, model):
        torch.manual_seed(0)
        found.append(each(x))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
