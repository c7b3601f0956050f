"""NaN, half precision, autocast and gradients through one merge step."""

import pytest
import torch
from made_tokens import advance, copies, plain, rand
from methods import GRID, budgets, in_blocks, keeping, not_random, thresholds

from mame_lab.merging import MaMe, ToFu
from mame_lab.merging.plan import SoftPlan
from mame_lab.merging.state import MergeState, attention_bias
from mame_lab.merging.tokens import Tokens

BUDGETS = in_blocks(budgets(2)) | {"mame, spread": MaMe(r=2, tau=0.1)}


def each(methods):
    return pytest.mark.parametrize("method", methods.values(), ids=methods)


@each(BUDGETS)
def test_nan_tokens_keep_static_shapes(method):
    """A diverged model must show as NaN, not as an index error."""
    y, _ = advance(MergeState(1), method, torch.full((1, 9, 3), float("nan")), 2)
    assert y.shape == (1, 7, 3)
    assert y.isnan().all()


@each(thresholds(0.5))
def test_nan_in_one_sample_leaves_the_others_alone(method):
    x = rand(torch.Generator().manual_seed(0), 2, 15, 3)
    x[0] = float("nan")
    y, state = advance(MergeState(1), method, x, None)
    alone, alone_state = advance(MergeState(1), method, x[1:], None)
    k = alone.shape[1]
    assert state.valid_BN.sum(1).tolist() == [15, k]
    torch.testing.assert_close(y[1:, :k], alone)
    torch.testing.assert_close(state.size_BN1[1:, :k], alone_state.size_BN1)
    assert y[0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each(keeping("mass", budgets(9)) | {"mame, spread": MaMe(r=9, tau=0.0)} | thresholds(0.2))
def test_half_precision_keeps_mass(dtype, method):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(1, 1, 32, generator=generator) + 0.7 * torch.randn(2, 99, 32, generator=generator)).to(dtype)
    y, state = x, MergeState(1)
    for _ in range(3):
        y, state = advance(state, method, y, method.r)
    assert y.dtype == state.bias_B11N.dtype == dtype
    assert state.size_BN1.dtype == torch.float32
    assert y.shape[1] < 80
    torch.testing.assert_close(state.size_BN1.sum(1), torch.full((2, 1), 99.0), rtol=1e-5, atol=0)
    error = (state.size_BN1 * y.float()).mean(1) - x.float().mean(1) * 99 / y.shape[1]
    assert error.norm() < 3 * torch.finfo(dtype).eps * x.float().mean(1).norm() * 99 / y.shape[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each(not_random(budgets(9)) | thresholds(0.2))
def test_half_precision_selects_what_single_precision_does(dtype, method):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(1, 1, 32, generator=generator) + 0.7 * torch.randn(2, 99, 32, generator=generator)).to(dtype)
    half, single = method.plan(plain(x, 1), method.r), method.plan(plain(x.float(), 1), method.r)
    assert torch.equal(half.index_BK, single.index_BK)
    assert torch.equal(half.matrix(), single.matrix())
    size = torch.ones(2, 99, 1)
    y, expected = half.merge(x, size)[0].float(), single.merge(x.float(), size)[0]
    torch.testing.assert_close(y, expected, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@each(thresholds(0.5))
def test_autocast_keeps_mass_and_restores(method):
    x = copies(1, kinds=4, patches=41).float() + 0.1 * torch.randn(2, 42, 6, generator=torch.Generator().manual_seed(0))
    expected, plain = advance(MergeState(1, record=True), method, x, None)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = advance(MergeState(1, record=True), method, x, None)
        restored = state.restore(y)
    assert torch.equal(state.size_BN1, plain.size_BN1)
    assert torch.equal(y, expected)
    assert torch.equal(restored, plain.restore(expected))


@each(BUDGETS | thresholds(0.1) | {"mame, all": MaMe(tau=-0.5)})
def test_gradients_are_those_of_the_merge(method):
    """gradcheck in float64, away from the thresholds: tokens, sizes and the attention bias."""
    torch.manual_seed(3)
    x = torch.randn(2, 8, 3, dtype=torch.float64, requires_grad=True)
    sizes = torch.full((2, 8, 1), 1.5, dtype=torch.float64)

    def step(x):
        torch.manual_seed(0)
        plan = method.plan(Tokens(x, x, sizes, 1, key_BHND=x[:, None], query_BHND=x[:, None]), method.r)
        y, size = plan.merge(x, sizes)
        valid = size[..., 0] > 0
        bias = attention_bias(size, plan.valid_BK, prop_attn=True)
        return y * valid[..., None], size, bias.masked_fill(bias.isinf(), 0), plan.restore(y)

    assert torch.autograd.gradcheck(step, x)
    assert step(x)[1].requires_grad == spreads(method)


def spreads(method) -> bool:
    """Whether a source is spread over several targets: then sizes have gradients."""
    tokens = plain(rand(torch.Generator().manual_seed(0), 1, 9, 4), 1)
    return isinstance(method.plan(tokens, method.r), SoftPlan)


@each(thresholds(0.8))
def test_padding_has_finite_gradients(method):
    torch.manual_seed(0)
    x = torch.randn(1, 1, 4) + torch.tensor([0.5, 1.0, 3.0]).view(3, 1, 1) * torch.randn(3, 21, 4)
    x.requires_grad_()
    y, state = advance(MergeState(0), method, x, None)
    assert state.valid_BN is not None
    assert not state.valid_BN.all()
    assert state.size_BN1.requires_grad == spreads(method)
    attention = (y @ y.mT + state.bias_B11N[:, 0]).softmax(-1)
    (attention @ y).square().sum().backward()
    assert x.grad.isfinite().all()
    assert (attention[:, :, -1][~state.valid_BN[:, -1]] == 0).all()


def test_tokens_that_are_zero_have_finite_gradients():
    """Their norms have no quotient, which the late blocks of ToFu take."""
    x = rand(torch.Generator().manual_seed(0), 1, 5, 4)
    x[:, :2] = 0
    x.requires_grad_()
    y, _ = ToFu(r=2).for_block(1, 2).plan(plain(x), 2).merge(x, torch.ones(1, 5, 1, dtype=x.dtype))
    y.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rest", [0, 1e-12, 1e-4])
@each(not_random(BUDGETS) | thresholds(-1) | {"mame, spread over all": MaMe(r=2, tau=-1)})
def test_tokens_that_cancel_stay_finite(method, rest, dtype):
    """Two pairs of opposite tokens merge into what is left of them, and those merge again."""
    generator = torch.Generator().manual_seed(0)
    x = 100 * rand(generator, 2, 5, 8)
    x[:, 2::2] = rest * rand(generator, 2, 2, 8) - x[:, 1::2]
    x = x.to(dtype).requires_grad_()
    y, state = advance(MergeState(1), method, x, method.r)
    y, state = advance(state, method, y, method.r and 1)
    assert y.isfinite().all()
    assert (y.norm(dim=2) <= 1.01 * x.norm(dim=2).max()).all()
    y.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("method", [MaMe(r=2, tau=-1), MaMe(tau=-0.5)], ids=str)
def test_a_token_without_a_direction_has_no_gradient_of_it(method, dtype):
    x = rand(torch.Generator().manual_seed(0), 1, 9, 8)
    x[:, 1:3] = 0
    x = x.to(dtype).requires_grad_()
    y, _ = advance(MergeState(1), method, x, method.r)
    y.sum().backward()
    assert x.grad.abs().max() < 10


@pytest.mark.parametrize("name", GRID)
def test_a_grid_with_tokens_that_are_zero_has_scores_in_half_precision(name):
    x_BNC = rand(torch.Generator().manual_seed(0), 1, 16, 4).half()
    x_BNC[:, :3] = 0
    assert GRID[name](r=0.5).match(x_BNC, (4, 4)).score_BS.isfinite().all()
