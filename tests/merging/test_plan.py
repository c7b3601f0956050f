"""A plan of any assignment: which token is removed and which one takes it is up to the method."""

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokens import plain, rand

from mame_lab.merging import MaMe
from mame_lab.merging.plan import SoftPlan, make_plan, make_soft_plan, plan_of_some
from mame_lab.merging.state import merge_step
from mame_lab.merging.tokens import Tokens


def test_the_eight_tokens_of_the_docstring():
    tokens, source_BR = plain(torch.randn(1, 8, 4), 1), torch.tensor([[2, 6]])
    hard = make_plan(tokens, source_BR, torch.tensor([[3, 1]]))
    W_BTS = torch.tensor([[[0.5, 0, 0], [0.5, 0, 0], [0, 0, 1], [0, 0, 0]]])
    soft = make_soft_plan(tokens, hard.layout, W_BTS, torch.tensor([[True, False, True]]))
    assert hard.index_BK.tolist() == soft.index_BK.tolist() == [[0, 1, 3, 4, 5, 7]]
    assert (hard.row_BN.tolist(), hard.row_R.tolist()) == ([[0, 1, 2, 2, 3, 4, 1, 5]], [2, 1])
    assert hard.source_BR.tolist() == soft.source_BR.tolist() == [[2, 6]]
    assert soft.row_BN.tolist() == [[0, 1, 6, 2, 3, 4, 6, 5]]
    assert soft.merge(tokens.x_BNC, tokens.size_BN1)[1].flatten().tolist() == [1, 1.5, 1.5, 1, 2, 1]


@st.composite
def assignments(draw):
    """Tokens of uneven sizes, the places of those removed and of their targets, and how many of them each sample loses.

    Shorter samples are padded with garbage. The number lost is None where all samples lose all of them.
    """
    prefix, batch = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    lengths = draw(st.lists(st.integers(prefix + 6, prefix + 12), min_size=batch, max_size=batch))
    n, removed = max(lengths), draw(st.integers(1, 5))
    valid_BN = torch.arange(n) < torch.tensor(lengths)[:, None]
    size_BN1 = torch.randint(1, 5, (batch, n, 1), generator=generator).double() * valid_BN[..., None]
    x_BNC = rand(generator, batch, n, 3)
    order = [torch.randperm(length - prefix, generator=generator) + prefix for length in lengths]
    source_BR = torch.stack([each[:removed] for each in order])
    target_BR = torch.stack(
        [each[removed:][torch.randint(len(each) - removed, (removed,), generator=generator)] for each in order]
    )
    lost = draw(st.none() | st.lists(st.integers(0, removed), min_size=batch, max_size=batch))
    tokens = Tokens(x_BNC, x_BNC, size_BN1, prefix, None if len(set(lengths)) == 1 else valid_BN)
    return tokens, source_BR, target_BR, lost


@settings(max_examples=60, deadline=None)
@given(assignments(), st.booleans(), st.booleans())
def test_agrees_with_the_loop(assignment, weighted, largest_norm):
    tokens, source_BR, target_BR, lost = assignment
    x_BNC, size_BN1 = tokens.x_BNC, tokens.size_BN1
    weight_BN1 = size_BN1.exp() if weighted else None
    if lost is None:
        plan = make_plan(tokens, source_BR, target_BR, weight_BN1)
    else:
        removed_BR = torch.arange(source_BR.shape[1]) < torch.tensor(lost)[:, None]
        first_B1 = tokens.places()[:, :1]
        plan = plan_of_some(tokens, source_BR + first_B1, target_BR + first_B1, removed_BR)
        plan.weight_BN1 = weight_BN1
    plan.largest_norm = largest_norm
    y_BKC, y_BK1 = plan.merge(x_BNC, size_BN1)
    restored_BNC, matrix_BKN = plan.restore(y_BKC), plan.matrix(x_BNC.dtype)
    for b, x_NC in enumerate(x_BNC):
        length = x_BNC.shape[1] if tokens.valid_BN is None else int(tokens.valid_BN[b].sum())
        removed = source_BR.shape[1] if lost is None else lost[b]
        going = dict(zip(source_BR[b, :removed].tolist(), target_BR[b, :removed].tolist(), strict=True))
        sizes = size_BN1[b, :length, 0].tolist()
        weights = sizes if weight_BN1 is None else weight_BN1[b, :length, 0].tolist()
        expected = oracle.merge_into(x_NC[:length].tolist(), weights, sizes, going, largest_norm)
        k = length - removed
        assert plan.tokens()[b] == k
        assert plan.index_BK[b, :k].tolist() == list(expected)
        values, totals = zip(*expected.values(), strict=True)
        torch.testing.assert_close(y_BKC[b, :k], x_NC.new_tensor(values), rtol=1e-12, atol=1e-12)
        assert y_BK1[b, :k, 0].tolist() == list(totals)
        assert (y_BK1[b, k:] == 0).all()
        alone = [row for row, n in enumerate(expected) if n not in going.values()]
        assert torch.equal(y_BKC[b, alone], x_NC[plan.index_BK[b, alone]])
        rows = [list(expected).index(going.get(n, n)) for n in range(length)]
        assert plan.row_BN[b].tolist() == rows + [plan.index_BK.shape[1]] * (x_BNC.shape[1] - length)
        assert torch.equal(restored_BNC[b, :length], y_BKC[b, rows])
        assert (restored_BNC[b, length:] == 0).all()
        one_hot_NK = torch.eye(plan.index_BK.shape[1], dtype=x_BNC.dtype)[rows]
        assert torch.equal(matrix_BKN[b, :, :length], one_hot_NK.T)
        assert (matrix_BKN[b, :, length:] == 0).all()
    assert plan.complete == (tokens.valid_BN is None)
    if lost is None:
        assert y_BKC.shape[1] == x_BNC.shape[1] - source_BR.shape[1]


def test_tokens_without_weight_leave_their_target_as_it_is():
    x_BNC = rand(torch.Generator().manual_seed(0), 1, 6, 3)
    weight_BN1 = torch.tensor([1.0, 1, 0, 1, 0, 1], dtype=torch.float64)[None, :, None]
    plan = make_plan(plain(x_BNC), torch.tensor([[2, 4]]), torch.tensor([[3, 3]]), weight_BN1=weight_BN1)
    y_BKC, size_BK1 = plan.merge(x_BNC, torch.ones_like(weight_BN1))
    assert torch.equal(y_BKC, x_BNC[:, [0, 1, 3, 5]])
    assert size_BK1[0, :, 0].tolist() == [1, 1, 3, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_that_become_one_are_their_mean_in_half_precision(dtype):
    x_BNC = 1 + torch.randn(2, 301, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    source_BR = torch.arange(1, 300).expand(2, -1)
    plan = make_plan(plain(x_BNC), source_BR, torch.full_like(source_BR, 300))
    y_BKC, size_BK1 = plan.merge(x_BNC, torch.ones(2, 301, 1))
    assert y_BKC.dtype == dtype
    expected_BC = x_BNC[:, 1:].float().mean(1)
    torch.testing.assert_close(y_BKC[:, 1].float(), expected_BC, rtol=torch.finfo(dtype).eps, atol=1e-3)
    assert size_BK1[:, :, 0].tolist() == [[1, 300]] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_tokens_that_share_a_target_are_those_of_float32(dtype):
    def gradient(dtype: torch.dtype) -> torch.Tensor:
        x_BNC = torch.linspace(-1, 1, 16, dtype=dtype).view(1, 8, 2).requires_grad_()
        plan = make_plan(plain(x_BNC.detach()), torch.tensor([[2, 4, 6]]), torch.tensor([[1, 1, 3]]))
        y_BKC, _ = plan.merge(x_BNC, torch.ones(1, 8, 1))
        y_BKC.sum().backward()
        return x_BNC.grad.float()

    torch.testing.assert_close(gradient(dtype), gradient(torch.float32), rtol=0.02, atol=0.01)


def test_large_tokens_of_half_precision_merge_into_their_mean():
    x_BNC = torch.tensor([40000.0, -40000.0], dtype=torch.float16).view(1, 2, 1)
    plan = make_plan(plain(x_BNC), torch.tensor([[1]]), torch.tensor([[0]]))
    assert plan.merge(x_BNC, torch.ones(1, 2, 1))[0].item() == 0


@pytest.mark.parametrize("r", [None, 1])
def test_spread_sources_leave_targets_that_are_padding_finite(r):
    valid_BN = torch.arange(8) < torch.tensor([8, 5])[:, None]
    x_BNC = rand(torch.Generator().manual_seed(0), 2, 8, 3).requires_grad_()
    tokens = plain(x_BNC)._replace(valid_BN=valid_BN, size_BN1=valid_BN[..., None].double())
    plan, y_BKC, size_BK1, _ = merge_step(MaMe(r=r, tau=-0.5), tokens, r)
    assert isinstance(plan, SoftPlan)
    assert (plan.tokens() < torch.tensor([8, 5])).all()
    assert y_BKC.isfinite().all()
    y_BKC.sum().backward()
    assert x_BNC.grad.isfinite().all()
    assert size_BK1.sum((1, 2)).tolist() == pytest.approx([8, 5])
