"""What must hold for one merge step, for every way there is to choose the tokens that are removed."""

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokens import advance, copies, plain, rand
from methods import budgets, keeping, not_random, thresholds

from mame_lab.merging import Drop, MaMe, ToMe, Ward
from mame_lab.merging.bipartite import Bipartite
from mame_lab.merging.matching import threshold_weights
from mame_lab.merging.method import SequenceMethod
from mame_lab.merging.plan import make_plan
from mame_lab.merging.state import MergeState
from mame_lab.merging.tokens import Tokens

ALONE = (
    budgets(3)
    | {f"{name}, half": method for name, method in budgets(0.5).items()}
    | {"mame, spread": MaMe(r=3, tau=0.1), "mame, spread, half": MaMe(r=0.5, tau=0.7)}
    | thresholds(0.2)
    | thresholds(0.7, "few")
)
EVERY = ALONE | thresholds(0.1, "union", batching="union")
WITH_LOOP = {name: method for name, method in EVERY.items() if type(method) in (Ward, MaMe, ToMe)}


@st.composite
def steps(draw, method):
    """The number of tokens that a method removes, and tokens with uneven sizes, unlike their keys and inputs."""
    prefix, patches = draw(st.integers("class_token" in method.needs, 3)), draw(st.integers(6, 17))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    shape = draw(st.integers(1, 3)), prefix + patches
    size_BN1 = 1 + torch.rand(*shape, 1, generator=generator, dtype=torch.float64) * 3
    x_BNC, input_BNC = rand(generator, *shape, 4), rand(generator, *shape, 4)
    key_BHND = rand(generator, shape[0], 2, shape[1], 3)
    query_BHND = rand(generator, *key_BHND.shape)
    tokens = Tokens(x_BNC, input_BNC, size_BN1, prefix, key_BHND=key_BHND, query_BHND=query_BHND, scale=0.5)
    return patches // 2 if method.r == 0.5 else method.r, tokens


def each(methods):
    """A test of every method on some steps."""
    some = settings(max_examples=10, deadline=None)
    parameters = pytest.mark.parametrize("method", methods.values(), ids=methods)
    return lambda test: parameters(some(given(data=st.data())(test)))


def columns(method: SequenceMethod, r: int | None, tokens: Tokens, sample: int) -> dict[int, list[float]]:
    """For each source of a sample that is removed, its weights over the targets, by the oracle."""
    tau = least = getattr(method, "tau", None)
    if isinstance(method, Ward):
        queries, keys = tokens.query_BHND[sample].tolist(), tokens.key_BHND[sample].tolist()
        sizes = tokens.size_BN1[sample, :, 0].tolist()
        weights = oracle.ward_weights(queries, keys, sizes, tokens.prefix, tokens.scale)
        mean_keys, x = tokens.mean_key()[sample].tolist(), tokens.x_BNC[sample].tolist()
        similarities = oracle.ward_similarities(mean_keys, x, weights, tokens.prefix)
        least = None if tau is None else -((1 - tau) ** 2)
    else:
        compared = tokens.mean_key() if isinstance(method, ToMe) else tokens.x_BNC
        similarities = oracle.cosine_similarities(compared[sample].tolist(), tokens.prefix)
    spread = isinstance(method, MaMe) and tau is not None
    return {
        s: oracle.paper_column(similarities[s], tau) if spread else oracle.nearest_column(similarities[s])
        for s in oracle.removed(similarities, least, r)
    }


@each(EVERY)
def test_prefix_is_untouched_and_the_right_number_is_removed(method, data):
    r, tokens = data.draw(steps(method))
    plan = method.plan(tokens, r)
    y, size = plan.merge(tokens.x_BNC, tokens.size_BN1)
    assert torch.equal(y[:, : tokens.prefix], tokens.x_BNC[:, : tokens.prefix])
    assert torch.equal(size[:, : tokens.prefix], tokens.size_BN1[:, : tokens.prefix])
    assert y.shape[1] == plan.tokens().max()
    if r is not None:
        assert plan.valid_BK is None
        assert y.shape[1] == tokens.x_BNC.shape[1] - r
    unmoved = plan.matrix().gt(0).sum(2) == 1
    places = plan.index_BK[unmoved]
    samples = torch.arange(len(y))[:, None].expand_as(plan.index_BK)[unmoved]
    assert torch.equal(y[unmoved], tokens.x_BNC[samples, places])


@each(keeping("sizes", EVERY))
def test_sizes_are_kept(method, data):
    r, tokens = data.draw(steps(method))
    _, size = method.plan(tokens, r).merge(tokens.x_BNC, tokens.size_BN1)
    torch.testing.assert_close(size.sum(1), tokens.size_BN1.sum(1), rtol=1e-12, atol=0)


@each(keeping("mass", EVERY))
def test_size_times_token_is_kept(method, data):
    r, tokens = data.draw(steps(method))
    y, size = method.plan(tokens, r).merge(tokens.x_BNC, tokens.size_BN1)
    mass_BC = (tokens.size_BN1 * tokens.x_BNC).sum(1)
    torch.testing.assert_close((size * y).sum(1), mass_BC, rtol=1e-11, atol=1e-11)


@each(WITH_LOOP)
def test_agrees_with_the_loops(method, data):
    r, tokens = data.draw(steps(method))
    if method.depends_on_batch:
        tokens = Tokens(*(each[:1] if isinstance(each, torch.Tensor) else each for each in tokens))
    plan = method.plan(tokens, r)
    y, y_size = plan.merge(tokens.x_BNC, tokens.size_BN1)
    restored = plan.restore(y)
    for b, x in enumerate(tokens.x_BNC):
        going = columns(method, r, tokens, b)
        sizes = tokens.size_BN1[b, :, 0].tolist()
        rows, merged_sizes, stays = oracle.merge(x.tolist(), sizes, tokens.prefix, going)
        k = len(rows)
        assert plan.tokens()[b] == k
        assert plan.index_BK[b, :k].tolist() == stays
        assert sorted(plan.source_BR[b, : len(going)].tolist()) == sorted(going)
        torch.testing.assert_close(y[b, :k], x.new_tensor(rows), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(y_size[b, :k, 0], x.new_tensor(merged_sizes), rtol=1e-11, atol=1e-11)
        assert (y_size[b, k:] == 0).all()
        full = oracle.restore(rows, stays, tokens.prefix, going)
        torch.testing.assert_close(restored[b], x.new_tensor(full), rtol=1e-11, atol=1e-11)


@each(EVERY)
def test_dense_matrix_is_the_step(method, data):
    r, tokens = data.draw(steps(method))
    plan = method.plan(tokens, r)
    x, size = tokens.x_BNC, tokens.size_BN1
    y, y_size = plan.merge(x, size)
    matrix = plan.matrix(x.dtype)
    torch.testing.assert_close(matrix @ size, y_size)
    if "mass" not in method.gives_up:
        torch.testing.assert_close(matrix @ (size * x), y_size * y)
    torch.testing.assert_close(matrix.mT @ (y * (y_size > 0)), plan.restore(y))


@each(keeping("sizes", EVERY))
def test_two_steps_compose(method, data):
    """The second step meets padding; sizes, mass and restoration go through both."""
    r, tokens = data.draw(steps(method))
    x, prefix = tokens.x_BNC, tokens.prefix
    if r is not None:
        r = min(r, (x.shape[1] - r - prefix) // 2)
    state = MergeState(prefix, record=True)
    y, state = advance(state, method, x, r)
    y, state = advance(state, method, y, r)
    product = state.plans[1].matrix(x.dtype) @ state.plans[0].matrix(x.dtype)
    ones = torch.ones(*x.shape[:2], 1, dtype=torch.float64)
    size_BN1 = ones if state.size_BN1 is None else state.size_BN1  # None: nothing was removed.
    torch.testing.assert_close(product @ ones, size_BN1)
    if "mass" not in method.gives_up:
        torch.testing.assert_close(product @ x, size_BN1 * y)
    torch.testing.assert_close(product.mT @ y.nan_to_num(), state.restore(y))
    torch.testing.assert_close(state.restore(y)[:, prefix:].mean(1), state.mean(y, prefix))


@each(not_random(ALONE))
def test_padding_never_matters(method, data):
    """Whatever stands in the padding, every sample merges as it does alone, and padding stays padding."""
    r, tokens = data.draw(steps(method))
    batch, longest = tokens.x_BNC.shape[:2]
    fewest = tokens.prefix + 2 * (r or 1)
    lengths = data.draw(st.lists(st.integers(min(fewest, longest), longest), min_size=batch, max_size=batch))
    valid_BN = torch.arange(longest) < torch.tensor(lengths)[:, None]
    scale = data.draw(st.sampled_from([1, 7]))  # Copies of tokens are near to them by any measure.
    garbage = [torch.where(valid_BN[..., None], x, scale * x.flip(1)) for x in tokens[:2]]
    key_BHND, query_BHND = (
        torch.where(valid_BN[:, None, :, None], x, scale * x.flip(2)) for x in (tokens.key_BHND, tokens.query_BHND)
    )
    bias_B11N = torch.zeros(batch, 1, 1, longest, dtype=torch.float64).masked_fill(
        ~valid_BN[:, None, None], float("-inf")
    )
    size_BN1 = tokens.size_BN1 * valid_BN[..., None]
    looks = {"key_BHND": key_BHND, "query_BHND": query_BHND, "bias_B11N": bias_B11N}
    padded = Tokens(garbage[0], garbage[1], size_BN1, tokens.prefix, valid_BN, **looks)
    plan = method.plan(padded, r)
    y, size = plan.merge(padded.x_BNC, padded.size_BN1)
    restored = plan.restore(y)
    for b, n in enumerate(lengths):
        x, inputs, sizes = (each[b : b + 1, :n] for each in tokens[:3])
        keys, queries = (each[b : b + 1, :, :n] for each in (tokens.key_BHND, tokens.query_BHND))
        alone = method.plan(Tokens(x, inputs, sizes, tokens.prefix, key_BHND=keys, query_BHND=queries), r)
        expected, expected_size = alone.merge(x, sizes)
        k, removed = expected.shape[1], alone.source_BR.shape[1]
        assert plan.tokens()[b] == k
        assert torch.equal(plan.index_BK[b, :k], alone.index_BK[0])
        assert torch.equal(plan.source_BR[b, :removed], alone.source_BR[0])
        torch.testing.assert_close(y[b, :k], expected[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(size[b, :k], expected_size[0], rtol=1e-12, atol=0)
        assert (size[b, k:] == 0).all()
        torch.testing.assert_close(restored[b, :n], alone.restore(expected)[0], rtol=1e-12, atol=1e-12)


COPIES = (
    keeping("copies", budgets(4))
    | {"mame, spread": MaMe(r=4, tau=0.99)}
    | thresholds(1 - 1e-9)
    | thresholds(0.99, "union", batching="union")
)


@pytest.mark.parametrize("method", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_restore_inverts_the_merge_of_copies(method, prefix):
    x = copies(prefix, kinds=4, patches=21)
    state = MergeState(prefix, record=True)
    y, state = advance(state, method, x, method.r)
    assert y.shape[1] < x.shape[1]
    torch.testing.assert_close(state.restore(y), x, rtol=1e-13, atol=1e-13)
    if isinstance(method, Bipartite):
        assert not method.similarity(plain(x, prefix)).isnan().any()


def test_ward_has_a_similarity_where_rounding_makes_distances_negative():
    x = torch.randn(200, 1, 33, generator=torch.Generator().manual_seed(0)).expand(-1, 9, -1)
    assert Ward(tau=0).similarity(plain(x)).isfinite().all()


@pytest.mark.parametrize("hidden", ["tokens", "keys", "class attention"])
def test_ward_has_a_similarity_where_something_is_zero(hidden):
    x = rand(torch.Generator().manual_seed(0), 2, 9, 4)
    tokens = plain(x, 1)
    if hidden == "tokens":
        tokens = tokens._replace(x_BNC=x * 0)
    elif hidden == "keys":
        tokens = tokens._replace(key_BHND=x[:, None] * 0)
    else:  # All of it goes to the class token.
        tokens = tokens._replace(key_BHND=x[:, None] * torch.tensor([1e6, *[1] * 8])[:, None], query_BHND=x[:, None])
    assert Ward(tau=0).similarity(tokens).isfinite().all()


def test_tau_of_ward_is_compared_with_the_correlation():
    """Of tokens of size 1; heavier ones merge less readily, by their sizes."""
    x = rand(torch.Generator().manual_seed(0), 2, 8, 5)
    similarity, correlation = Ward(tau=0).similarity(plain(x)), MaMe(tau=0).similarity(plain(x - x.mean(2, True)))
    torch.testing.assert_close(-similarity, (1 - correlation) ** 2, rtol=1e-12, atol=1e-12)
    for tau in (0.5, -0.3):
        assert torch.equal(similarity > Ward(tau=tau).level(tau), correlation > tau)
        assert Ward(tau=0).tau_at(Ward(tau=0).level(tau)) == pytest.approx(tau)
    heavy = plain(x)._replace(size_BN1=torch.full((2, 8, 1), 4.0, dtype=torch.float64))
    torch.testing.assert_close(Ward(tau=0).similarity(heavy), 4 * similarity, rtol=1e-12, atol=1e-12)


def test_ward_merges_late_what_the_class_token_attends_to():
    x = rand(torch.Generator().manual_seed(0), 1, 9, 4)
    x[:, 0, 0], x[:, 1:, 0] = -1, 0
    query = torch.zeros_like(x[:, None])
    tokens = plain(x, 1)._replace(query_BHND=query)
    even = Ward(tau=0).similarity(tokens)
    tokens.key_BHND[:, :, 2, 0] = 1e-9  # Looks alike, and is looked at.
    query[:, :, 0, 0] = 3e9
    closer = Ward(tau=0).similarity(tokens)[0] / even[0]
    assert (closer[:, 0] > 1).all()
    torch.testing.assert_close(closer[:, 1:], closer[0, 1].expand(4, 3))  # The others as before, but for the mean.
    assert closer[0, 1] < 1


def test_column_that_is_flat_keeps_all_its_targets():
    similarity = torch.tensor([[[0.95, 0.95, 0.10], [0.95, 0.91, 0.20], [0.95, 0.2, 0.30]]])
    W = threshold_weights(similarity, similarity.amax(1), tau=0.9)
    torch.testing.assert_close(W[0, :, 0], torch.full((3,), 1 / 3))
    assert W[0, :, 1].tolist() == [1, 0, 0]
    assert W[0, :, 2].tolist() == [0, 0, 1]  # None above tau: whole to the nearest.


@pytest.mark.parametrize("method", [MaMe, Ward])
def test_union_keeps_what_any_sample_needs(method):
    x = copies(1, kinds=3, patches=15, batch=3)
    generator = torch.Generator().manual_seed(0)
    x[2] = torch.randn(x.shape[1:], generator=generator, dtype=torch.float64)
    union = method(tau=0.999, batching="union")
    alone, together = union.plan(plain(x[:2], 1), None), union.plan(plain(x, 1), None)
    assert together.valid_BK is None
    assert alone.index_BK.shape[1] < together.index_BK.shape[1] == x.shape[1]
    each = [method(tau=0.999).plan(plain(x[b : b + 1], 1), None).source_BR[0].tolist() for b in (0, 1)]
    assert alone.source_BR.tolist() == [sorted(set(each[0]) & set(each[1]))] * 2


@pytest.mark.parametrize("method", [MaMe(r=2), Ward(r=2), ToMe(r=2)], ids=str)
def test_ties_go_to_the_lower_index(method):
    plan = method.plan(plain(torch.ones(2, 11, 3, dtype=torch.float64), 1), 2)
    assert plan.source_BR.tolist() == [[2, 4], [2, 4]]
    assert plan.matrix().sum(2).tolist() == [[1, 3, 1, 1, 1, 1, 1, 1, 1]] * 2


@pytest.mark.parametrize("method", [MaMe, Ward])
def test_what_is_on_the_threshold_does_not_merge(method):
    """A token merges when it is more similar than tau: copies are 1, and 0 is what the orthogonal are."""
    half = torch.tensor([[[1.0, -1, 0, 0], [0, 0, 1, -1]]], dtype=torch.float64)
    x = torch.cat([half, -half], 1)
    assert method(tau=0).plan(plain(x), None).tokens().item() == 4
    assert method(tau=-1e-6).plan(plain(x), None).tokens().item() == 2


def test_plan_of_no_merge_is_the_identity():
    x = torch.randn(2, 9, 5)
    none = torch.zeros(2, 0, dtype=torch.long)
    plan = make_plan(plain(x, 2), none, none)
    plan.largest_norm = True
    y, size = plan.merge(x, torch.ones(2, 9, 1))
    assert torch.equal(x, y)
    assert (size == 1).all()
    assert torch.equal(plan.restore(y), x)


def test_dropping_keeps_the_others_and_loses_the_dropped():
    x = rand(torch.Generator().manual_seed(0), 3, 12, 4)
    torch.manual_seed(0)
    y, state = advance(MergeState(2, record=True), Drop(r=3), x, 3)
    (plan,) = state.plans
    for b in range(3):
        dropped = plan.source_BR[b].tolist()
        assert set(dropped) <= set(range(3, 12, 2))
        stays = [n for n in range(12) if n not in dropped]
        assert torch.equal(y[b], x[b, stays])
        assert (state.size_BN1[b] == 1).all()
        restored = state.restore(y)[b]
        assert torch.equal(restored[stays], x[b, stays])
        assert (restored[dropped] == 0).all()
    assert state.bias_B11N is None


def test_dropping_is_drawn_anew_for_every_sample_and_pass():
    tokens = plain(torch.randn(8, 41, 4), 1)
    torch.manual_seed(0)
    first, second = (Drop(r=4).plan(tokens, 4).source_BR for _ in range(2))
    assert not torch.equal(first, second)
    assert len({tuple(row.tolist()) for row in first}) > 4
    torch.manual_seed(0)
    assert torch.equal(Drop(r=4).plan(tokens, 4).source_BR, first)
    every = torch.cat([Drop(r=4).plan(tokens, 4).source_BR for _ in range(20)])
    assert set(every.flatten().tolist()) == set(range(2, 41, 2))
