"""The published methods against loops written from their papers, and which contracts each keeps or gives up."""

import oracle
import published
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokens import advance, copies, plain, rand
from methods import budgets, in_blocks

from mame_lab.merging import ATC, MCTF, EViT, PiToMe, ToFu, ToMe
from mame_lab.merging.method import CONTRACTS
from mame_lab.merging.state import MergeState
from mame_lab.merging.tokens import Tokens

DEPTH = 12
# The methods as blocks at some places of a model of 12 have them, and the loops they are.
METHODS_AND_LOOPS = {
    "tome": (ToMe(r=3), published.tome),
    "mctf": (MCTF(r=3), published.mctf),
    "atc": (ATC(r=3), published.atc),
    "evit": (EViT(r=3), published.evit),
    **{
        f"{name}, block {block}": (
            method(r=3).for_block(block, DEPTH),
            lambda sample, r, loop=loop, block=block: loop(sample, r, block, DEPTH),
        )
        for name, method, loop, blocks in (
            ("pitome", PiToMe, published.pitome, (0, 5, 6)),
            ("tofu", ToFu, published.tofu, (5, 6)),
        )
        for block in blocks
    },
}


@st.composite
def steps(draw):
    """Tokens of uneven sizes, as after earlier steps, unlike their keys and queries; shorter samples end in padding."""
    prefix, batch = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    lengths = draw(st.lists(st.integers(prefix + 8, prefix + 13), min_size=batch, max_size=batch))
    n = max(lengths)
    valid_BN = torch.arange(n) < torch.tensor(lengths)[:, None]
    size_BN1 = torch.randint(1, 6, (batch, n, 1), generator=generator).double() * valid_BN[..., None]
    x_BNC, key_BHND, query_BHND = (rand(generator, batch, *shape) for shape in ((n, 4), (2, n, 3), (2, n, 3)))
    bias_B11N = size_BN1.log().mT[:, None]  # Where it is padding, -inf.
    padded = None if valid_BN.all() else valid_BN
    return Tokens(x_BNC, x_BNC, size_BN1, prefix, padded, key_BHND, query_BHND, 0.6, bias_B11N), lengths


@pytest.mark.parametrize("name", METHODS_AND_LOOPS)
@settings(max_examples=25, deadline=None)
@given(step=steps(), r=st.integers(1, 4))
def test_agrees_with_the_loops(name, step, r):
    (tokens, lengths), (method, loop) = step, METHODS_AND_LOOPS[name]
    plan = method.plan(tokens, r)
    y_BKC, y_BK1 = plan.merge(tokens.x_BNC, tokens.size_BN1)
    assert y_BKC.shape[1] == tokens.x_BNC.shape[1] - r
    for b, length in enumerate(lengths):
        x, sizes = tokens.x_BNC[b, :length], tokens.size_BN1[b, :length, 0]
        keys, queries = tokens.key_BHND[b, :, :length], tokens.query_BHND[b, :, :length]
        given = published.Sample(
            x.tolist(), keys.tolist(), queries.tolist(), sizes.tolist(), tokens.prefix, tokens.scale
        )
        going, weights, largest_norm = loop(given, r)
        expected = oracle.merge_into(given.x, weights, given.sizes, going, largest_norm)
        assert plan.tokens()[b] == len(expected) == length - r
        assert plan.index_BK[b, : length - r].tolist() == list(expected)
        values, totals = zip(*expected.values(), strict=True)
        torch.testing.assert_close(y_BKC[b, : length - r], x.new_tensor(values), rtol=1e-11, atol=1e-11)
        assert y_BK1[b, : length - r, 0].tolist() == list(totals)
        assert torch.equal(y_BKC[b, : tokens.prefix], x[: tokens.prefix])


@settings(max_examples=20, deadline=None)
@given(steps(), st.integers(1, 9))
def test_more_than_half_can_be_removed_where_no_pairs_are_needed(step, r):
    tokens, lengths = step
    r = min(r, min(lengths) - tokens.prefix - 1)
    for method in (ATC(r=r), EViT(r=r)):
        y_BKC, size_BK1 = method.plan(tokens, r).merge(tokens.x_BNC, tokens.size_BN1)
        assert y_BKC.shape[1] == max(lengths) - r
        assert torch.equal(size_BK1.sum(1), tokens.size_BN1.sum(1))


@pytest.mark.parametrize("name", METHODS_AND_LOOPS)
def test_two_steps_are_the_loops_after_each_other(name):
    """The sizes of the first enter the attention and the means of the second."""
    method, loop = METHODS_AND_LOOPS[name]
    x_BNC = rand(torch.Generator().manual_seed(0), 2, 16, 4)
    y_BKC, state = x_BNC, MergeState(1, record=True)
    for _ in range(2):
        y_BKC, state = advance(state, method, y_BKC, 3)
    for b, x in enumerate(x_BNC.tolist()):
        sizes = [1.0] * len(x)
        for _ in range(2):
            going, weights, largest_norm = loop(published.Sample(x, [x], [x], sizes, 1, 0.5), 3)
            x, sizes = map(list, zip(*oracle.merge_into(x, weights, sizes, going, largest_norm).values(), strict=True))
        torch.testing.assert_close(y_BKC[b], x_BNC.new_tensor(x), rtol=1e-11, atol=1e-11)
        assert state.size_BN1[b, :, 0].tolist() == sizes
    assert state.restore(y_BKC).shape == x_BNC.shape


def keeps(method, x_BNC: torch.Tensor, r: int) -> set[str]:
    """The contracts that a step on these tokens keeps, apart from that of compilation."""
    tokens = plain(x_BNC, 1)._replace(size_BN1=torch.arange(1.0, 1 + x_BNC.shape[1]).double().expand(2, -1)[..., None])
    plan = method.plan(tokens, r)
    y_BKC, size_BK1 = plan.merge(tokens.x_BNC, tokens.size_BN1)
    kept = {
        "sizes": (size_BK1.sum(1), tokens.size_BN1.sum(1)),
        "mass": ((size_BK1 * y_BKC).sum(1), (tokens.size_BN1 * x_BNC).sum(1)),
        "copies": (plan.restore(y_BKC), x_BNC),
    }
    return {name for name, pair in kept.items() if torch.allclose(*pair, rtol=1e-12, atol=1e-12)}


EACH = in_blocks(budgets(3))


@pytest.mark.parametrize("name", EACH)
def test_what_a_method_keeps_is_what_it_says(name):
    """Tokens without structure show what becomes of the mass, and as many as have a copy what becomes of copies."""
    torch.manual_seed(0)
    method = EACH[name]
    assert method.gives_up <= CONTRACTS.keys()
    scattered = keeps(method, rand(torch.Generator().manual_seed(1), 2, 14, 5), 3)
    assert scattered == {"sizes", "mass"} - method.gives_up
    copied = keeps(method, copies(1, kinds=8, patches=21), 10)
    assert copied - {"mass"} == {"sizes", "copies"} - method.gives_up
