"""What must hold for one merge step, for every way MaMe has to choose."""

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mame_lab.merging import MaMe
from mame_lab.merging.matching import threshold_weights
from mame_lab.merging.plan import make_plan
from mame_lab.merging.state import MergeState, attention_bias

METHODS = {
    "adaptive": (MaMe(tau=0.2), None),
    "adaptive, one copy": (MaMe(tau=0.9), None),
    "union": (MaMe(tau=0.2, batch="union"), None),
    "budget": (MaMe(r=3), 3),
    "budget, spread": (MaMe(r=3, tau=0.1), 3),
    "budget, all sources": (MaMe(r=0.5), "all"),
}


@st.composite
def steps(draw):
    """Random tokens with uneven sizes, and a method with the number of tokens that leave."""
    method, leave = METHODS[draw(st.sampled_from(sorted(METHODS)))]
    prefix, patches = draw(st.integers(0, 3)), draw(st.integers(6, 17))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    shape = draw(st.integers(1, 3)), prefix + patches, 4
    x_BNC = torch.randn(shape, generator=generator, dtype=torch.float64)
    size_BN1 = 1 + torch.rand(*shape[:2], 1, generator=generator, dtype=torch.float64) * 3
    return method, patches // 2 if leave == "all" else leave, prefix, x_BNC, size_BN1


@settings(max_examples=80, deadline=None)
@given(steps())
def test_mass_is_kept_and_prefix_is_untouched(step):
    method, leave, prefix, x, size = step
    plan = method.plan(x, None, prefix, leave)
    y, y_size = plan.merge(x, size)
    torch.testing.assert_close(y_size.sum(1), size.sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close((y_size * y).sum(1), (size * x).sum(1), rtol=1e-11, atol=1e-11)
    assert torch.equal(y[:, :prefix], x[:, :prefix])
    assert torch.equal(y_size[:, :prefix], size[:, :prefix])
    if leave is not None:
        assert y.shape[1] == x.shape[1] - leave


@settings(max_examples=80, deadline=None)
@given(steps())
def test_agrees_with_the_loop_of_the_paper(step):
    method, leave, prefix, x, size = step
    if method.batch == "union":
        x, size = x[:1], size[:1]
    plan = method.plan(x, None, prefix, leave)
    y, y_size = plan.merge(x, size)
    restored = plan.restore(y)
    for b in range(len(x)):
        arguments = (prefix, method.tau, leave)
        tokens, sizes, stays = oracle.merge(x[b].tolist(), size[b, :, 0].tolist(), *arguments)
        k = len(tokens)
        assert plan.tokens()[b] == k
        assert plan.index_BK[b, :k].tolist() == stays
        torch.testing.assert_close(y[b, :k], x.new_tensor(tokens), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(y_size[b, :k, 0], x.new_tensor(sizes), rtol=1e-11, atol=1e-11)
        assert (y_size[b, k:] == 0).all()
        full = oracle.restore(tokens, stays, x[b].tolist(), *arguments)
        torch.testing.assert_close(restored[b], x.new_tensor(full), rtol=1e-11, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(steps())
def test_dense_matrix_is_the_step(step):
    method, leave, prefix, x, size = step
    plan = method.plan(x, None, prefix, leave)
    y, y_size = plan.merge(x, size)
    matrix = plan.matrix()
    torch.testing.assert_close(matrix @ size, y_size)
    torch.testing.assert_close(matrix @ (size * x), y_size * y)
    torch.testing.assert_close(matrix.mT @ (y * (y_size > 0)), plan.restore(y))


@settings(max_examples=40, deadline=None)
@given(steps())
def test_two_steps_compose(step):
    """The second step meets padding; sizes, mass and restoration go through both."""
    method, leave, prefix, x, _ = step
    if leave is not None:
        leave = min(leave, (x.shape[1] - leave - prefix) // 2)
    state = MergeState(prefix, record=True)
    y, state = state.merge(method, x, leave)
    y, state = state.merge(method, y, leave)
    product = state.plans[1].matrix() @ state.plans[0].matrix()
    ones = torch.ones(*x.shape[:2], 1, dtype=torch.float64)
    torch.testing.assert_close(product @ ones, state.size_BN1)
    torch.testing.assert_close(product @ x, state.size_BN1 * y)
    torch.testing.assert_close(product.mT @ y.nan_to_num(), state.restore(y))
    torch.testing.assert_close(state.restore(y)[:, prefix:].mean(1), state.mean(y, prefix))


def copies(prefix: int, kinds: int, patches: int, batch: int = 2) -> torch.Tensor:
    """Tokens of few kinds with uneven multiplicity; the first of each kind stands on a target's place."""
    generator = torch.Generator().manual_seed(prefix + kinds)
    kind_BN = torch.randint(kinds, (batch, patches), generator=generator)
    kind_BN[:, 0 : 2 * kinds : 2] = torch.arange(kinds)
    table = torch.randn(prefix + kinds, 6, generator=generator, dtype=torch.float64)
    prefix_BP = torch.arange(prefix).expand(batch, prefix) + kinds
    return table[torch.cat([prefix_BP, kind_BN], 1)]


@pytest.mark.parametrize(
    "method", [MaMe(tau=1 - 1e-9), MaMe(tau=0.99, batch="union"), MaMe(r=4), MaMe(r=4, tau=0.99)], ids=repr
)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_restore_inverts_the_merge_of_copies(method, prefix):
    x = copies(prefix, kinds=4, patches=21)
    state = MergeState(prefix, record=True)
    y, state = state.merge(method, x, method.r)
    assert y.shape[1] < x.shape[1]
    torch.testing.assert_close(state.restore(y), x, rtol=1e-13, atol=1e-13)


def test_column_that_is_flat_keeps_all_its_targets():
    similarity = torch.tensor([[[0.95, 0.95, 0.10], [0.95, 0.91, 0.20], [0.95, 0.2, 0.30]]])
    W = threshold_weights(similarity, tau=0.9)
    torch.testing.assert_close(W[0, :, 0], torch.full((3,), 1 / 3))
    assert W[0, :, 1].tolist() == [1, 0, 0]
    assert W[0, :, 2].tolist() == [0, 0, 0]


def test_union_keeps_what_any_sample_needs():
    x = copies(1, kinds=3, patches=15, batch=3)
    generator = torch.Generator().manual_seed(0)
    x[2] = torch.randn(x.shape[1:], generator=generator, dtype=torch.float64)
    alone = MaMe(tau=0.999, batch="union").plan(x[:2], None, 1, None)
    together = MaMe(tau=0.999, batch="union").plan(x, None, 1, None)
    assert together.valid_BK is None
    assert alone.index_BK.shape[1] < together.index_BK.shape[1] == x.shape[1]


def test_ties_go_to_the_lower_index():
    x = torch.ones(2, 11, 3, dtype=torch.float64)
    plan = MaMe(r=2).plan(x, None, 1, 2)
    assert plan.merged_BS.nonzero()[:, 1].tolist() == [0, 1, 0, 1]
    assert plan.W_BTS.sum(2)[:, 0].tolist() == [2, 2]


def test_nan_tokens_keep_static_shapes():
    """A diverged model must show as NaN, not as an index error."""
    x = torch.full((1, 9, 3), float("nan"))
    y, _ = MergeState(1).merge(MaMe(r=2), x, 2)
    assert y.shape == (1, 7, 3)
    assert y.isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("method", "leave"), [(MaMe(tau=0.5), None), (MaMe(r=9, tau=0.0), 9)], ids=["adaptive", "budget"]
)
def test_half_precision_keeps_mass(dtype, method, leave):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(1, 1, 32, generator=generator) + 0.7 * torch.randn(2, 99, 32, generator=generator)).to(dtype)
    y, state = x, MergeState(1)
    for _ in range(3):
        y, state = state.merge(method, y, leave)
    assert y.dtype == state.bias_B11N.dtype == dtype
    assert state.size_BN1.dtype == torch.float32
    assert y.shape[1] < 80
    torch.testing.assert_close(state.size_BN1.sum(1), torch.full((2, 1), 99.0), rtol=1e-5, atol=0)
    error = (state.size_BN1 * y.float()).mean(1) - x.float().mean(1) * 99 / y.shape[1]
    assert error.norm() < 3 * torch.finfo(dtype).eps * x.float().mean(1).norm() * 99 / y.shape[1]


def test_autocast_keeps_mass_and_restores():
    x = copies(1, kinds=4, patches=41).float() + 0.1 * torch.randn(2, 42, 6, generator=torch.Generator().manual_seed(0))
    expected, plain = MergeState(1, record=True).merge(MaMe(tau=0.5), x, None)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = MergeState(1, record=True).merge(MaMe(tau=0.5), x, None)
        restored = state.restore(y)
    assert torch.equal(state.size_BN1, plain.size_BN1)
    assert torch.equal(y, expected)
    assert torch.equal(restored, plain.restore(expected))


@pytest.mark.parametrize("tau", [-0.5, 0.1])
def test_gradients_are_those_of_the_merge(tau):
    """gradcheck in float64, away from the thresholds: tokens, sizes and the attention bias."""
    torch.manual_seed(3)
    x = torch.randn(2, 8, 3, dtype=torch.float64, requires_grad=True)

    def step(x):
        plan = MaMe(tau=tau).plan(x, None, 1, None)
        y, size = plan.merge(x, torch.full((2, 8, 1), 1.5, dtype=torch.float64))
        valid = size[..., 0] > 0
        bias = attention_bias(size, plan.valid_BK, prop_attn=True)
        return y * valid[..., None], size, bias.masked_fill(bias.isinf(), 0), plan.restore(y)

    assert torch.autograd.gradcheck(step, x)


def test_padding_has_finite_gradients():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 4) + torch.tensor([0.5, 1.0, 3.0]).view(3, 1, 1) * torch.randn(3, 21, 4)
    x.requires_grad_()
    y, state = MergeState(0).merge(MaMe(tau=0.8), x, None)
    assert state.valid_BN is not None
    assert not state.valid_BN.all()
    assert state.size_BN1.requires_grad
    attention = (y @ y.mT + state.bias_B11N[:, 0]).softmax(-1)
    (attention @ y).square().sum().backward()
    assert x.grad.isfinite().all()
    assert (attention[:, :, -1][~state.valid_BN[:, -1]] == 0).all()


def test_plan_of_no_merge_is_the_identity():
    W = torch.zeros(2, 4, 3)
    plan = make_plan(W, None, 2, None)
    x = torch.randn(2, 9, 5)
    y, size = plan.merge(x, torch.ones(2, 9, 1))
    assert torch.equal(x, y)
    assert (size == 1).all()
    assert torch.equal(plan.restore(y), x)
