"""Merging on a grid: windows, the choice of the sources, the step and its inverse, against a loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from methods import GRID

from mame_lab import MaMe, MameLabError, Ward
from mame_lab.merging import ToMeSD
from mame_lab.merging.grid.assignment import Match, assign
from mame_lab.merging.grid.settings import Grid
from mame_lab.merging.grid.windows import part

SIDES = st.integers(1, 12)
METHODS = {name: method(r=0.5) for name, method in GRID.items()}
every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def grid_tokens(batch: int, grid: tuple[int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, grid[0] * grid[1], 6, generator=generator, dtype=torch.float64)


def sources_of(grid: tuple[int, int], window: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Each source, by row and column, with the targets of its window."""
    height, width = (part(side, window) for side in grid)
    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    targets = [(i, j) for i, j in places if i % height % 2 == 0 and j % width % 2 == 0]
    return {
        (i, j): [(k, m) for k, m in targets if k // height == i // height and m // width == j // width]
        for i, j in places
        if (i, j) not in targets
    }


@given(SIDES, SIDES, st.sampled_from([0, 2, 3, 4]), st.floats(0, 1), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_agrees_with_a_loop(rows, columns, window, share, seed):
    grid, x_BNC = (rows, columns), grid_tokens(2, (rows, columns), seed)
    found = sources_of(grid, window)
    r = math.floor(share * len(found))
    if not found:
        return
    plan = assign(MaMe(r=0.5, grid=Grid(window=window)).match(x_BNC, grid), rows * columns, r)
    merged_BKC, restored_BNC = plan.merge(x_BNC), plan.restore(plan.merge(x_BNC))
    for b, x_NC in enumerate(x_BNC):
        at = lambda place, x_NC=x_NC: x_NC[place[0] * columns + place[1]]  # noqa: E731
        like = lambda i, j, at=at: torch.cosine_similarity(at(i), at(j), dim=0).item()  # noqa: E731
        nearest = {source: max(targets, key=lambda target: like(source, target)) for source, targets in found.items()}
        removed = sorted(found, key=lambda source: -like(source, nearest[source]))[:r]
        parts = {(i, j): [(i, j)] for i in range(rows) for j in range(columns) if (i, j) not in removed}
        for source in removed:
            parts[nearest[source]].append(source)
        means = {place: torch.stack([at(each) for each in of]).mean(0) for place, of in parts.items()}
        torch.testing.assert_close(merged_BKC[b], torch.stack([means[place] for place in sorted(parts)]))
        owner = {each: place for place, of in parts.items() for each in of}
        torch.testing.assert_close(restored_BNC[b], torch.stack([means[owner[place]] for place in sorted(owner)]))
        assert plan.size_BK1[b, :, 0].tolist() == [len(parts[place]) for place in sorted(parts)]


@every
@pytest.mark.parametrize("grid", [(8, 8), (6, 10), (5, 7), (2, 9)])
def test_sizes_and_mass_are_kept_and_what_does_not_merge_is_untouched(method, grid):
    x_BNC = grid_tokens(3, grid)
    tokens = grid[0] * grid[1]
    match = method.match(x_BNC, grid)
    plan = assign(match, tokens, len(match.source_S) // 2)
    merged_BKC = plan.merge(x_BNC)
    assert plan.size_BK1.sum(1).flatten().tolist() == [tokens] * 3
    torch.testing.assert_close((merged_BKC * plan.size_BK1).sum(1), x_BNC.sum(1))
    alone_BK = plan.size_BK1[..., 0] == 1
    before_BKC = x_BNC.gather(1, plan.index_BK[..., None].expand_as(merged_BKC))
    assert torch.equal(merged_BKC[alone_BK], before_BKC[alone_BK])
    assert plan.index_BK.diff(dim=1).min() > 0


@every
def test_equal_tokens_restore_exactly(method):
    cells = grid_tokens(2, (4, 6)).unflatten(1, (4, 6)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    x_BNC = cells.flatten(1, 2)
    plan = assign(method.match(x_BNC, (8, 12)), 96, 72)
    torch.testing.assert_close(plan.restore(plan.merge(x_BNC)), x_BNC, rtol=1e-15, atol=1e-15)


@every
def test_a_sample_does_not_depend_on_its_batch(method):
    x_BNC = grid_tokens(3, (8, 8)) * torch.tensor([1.0, 5.0, 0.2]).view(3, 1, 1)
    method = type(method)(r=0.5, grid=Grid(window=4))
    found = []
    for each_BNC in (x_BNC, x_BNC[1:2], x_BNC.flip(0)):
        torch.manual_seed(0)
        found.append(assign(method.match(each_BNC, (8, 8)), 64, 20).place_BN)
    together, alone, flipped = found
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together.flip(0), flipped)


def test_ward_compares_windows_on_one_scale():
    """What is removed is decided over the grid: a window of small tokens does not count as one of large distances."""
    x_BNC = grid_tokens(1, (8, 8))
    x_HWC = x_BNC.view(8, 8, 6)
    x_HWC[:, :4] *= 0.01
    match = Ward(r=0.25, grid=Grid(window=4)).match(x_BNC, (8, 8))
    plan = assign(match, 64, 16)
    assert (plan.source_BR % 8 < 4).all()


@pytest.mark.parametrize(
    ("side", "window", "length"),
    [
        *((64, 16, 16), (96, 16, 16), (48, 16, 16), (40, 16, 20), (60, 16, 20), (52, 16, 26), (50, 16, 10)),
        *(
            (58, 16, 16),
            (62, 16, 16),
            (74, 16, 16),
            (82, 16, 18),
            (106, 16, 16),
            (68, 16, 34),
            (92, 16, 16),
            (124, 16, 16),
        ),
        *((67, 16, 18), (45, 16, 16), (25, 16, 14), (23, 16, 23), (1, 16, 1), (6, 16, 6), (9, 2, 4), (128, 8, 8)),
    ],
)
def test_a_side_is_cut_into_windows(side, window, length):
    """Where an even length divides it into equal ones, elsewhere the last is shorter."""
    assert part(side, window) == length
    assert part(side, 0) == side


@pytest.mark.parametrize("window", [4, 8, 16])
def test_the_search_grows_with_the_tokens_at_any_size(window):
    for side in range(1, 257):
        length = part(side, window)
        assert length <= 2.5 * window
        assert length % 2 == 0 or length == side


@pytest.mark.parametrize("grid", [(58, 34), (25, 29)])
def test_padding_is_in_no_window(grid):
    """It is no target, and does not change the scale by which windows are compared."""
    x_BNC = grid_tokens(2, grid)
    match = Ward(r=0.5).match(x_BNC, grid)
    assert sorted({*match.source_S.tolist(), *even_places(grid)}) == list(range(grid[0] * grid[1]))
    assert {*match.nearest_BS.flatten().tolist()} <= even_places(grid)
    whole = Ward(r=0.5, grid=Grid(window=0)).match(x_BNC, grid)
    order = match.source_S.argsort()
    same_BR = match.nearest_BS[:, order] == whole.nearest_BS
    assert same_BR.any()
    torch.testing.assert_close(match.score_BS[:, order][same_BR], whole.score_BS[same_BR])


def test_padding_costs_no_synchronisation_with_the_device():
    """Tensors without values have shapes alone."""
    for method in (Ward(r=0.5), MaMe(r=0.5)):
        match = method.match(torch.empty(2, 58 * 29, 6, device="meta"), (58, 29))
        assert match.score_BS.shape == match.nearest_BS.shape == (2, 58 * 29 - 29 * 15)


def even_places(grid: tuple[int, int]) -> set[int]:
    return {i * grid[1] + j for i in range(0, grid[0], 2) for j in range(0, grid[1], 2)}


@pytest.mark.parametrize("grid", [(60, 60), (45, 45), (90, 160), (50, 45)])
def test_windows_keep_no_more_targets_than_the_grid_has(grid):
    x_BNC, tokens = grid_tokens(1, grid), grid[0] * grid[1]
    most = tokens - -(-grid[0] // 2) * -(-grid[1] // 2)
    match = MaMe(r=0.5).match(x_BNC, grid)
    assert len(match.source_S) == most
    assert assign(match, tokens, most).index_BK.shape[1] == tokens - most


def test_tomesd_draws_one_target_in_each_cell_for_all_samples():
    torch.manual_seed(0)
    x_BNC = grid_tokens(2, (5, 6))
    draws, corners = set(), set()
    for _ in range(30):
        match = ToMeSD(r=0.5).match(x_BNC, (5, 6))
        targets = sorted(set(range(30)) - set(match.source_S.tolist()))
        cells = [(place // 6 // 2, place % 6 // 2) for place in targets]
        assert sorted(cells) == [(i, j) for i in range(2) for j in range(3)]
        assert set(match.nearest_BS.flatten().tolist()) <= set(targets)
        draws.add(tuple(targets))
        corners |= {(place // 6 % 2, place % 6 % 2) for place in targets}
    assert len(corners) == 4
    assert len(draws) > 20


def test_tomesd_compares_over_the_whole_grid():
    x_BNC = grid_tokens(1, (6, 6))
    match = ToMeSD(r=0.5).match(x_BNC, (6, 6))
    targets = sorted(set(range(36)) - set(match.source_S.tolist()))
    for source, nearest, score in zip(match.source_S, match.nearest_BS[0], match.score_BS[0], strict=True):
        like = torch.cosine_similarity(x_BNC[0, source], x_BNC[0, targets], dim=1)
        assert nearest == targets[like.argmax()]
        torch.testing.assert_close(score, like.max())


@pytest.mark.parametrize("window", [1, -2])
def test_settings_of_a_grid_are_checked(window):
    with pytest.raises(MameLabError, match=rf"mame.grid.window={window} "):
        Grid(window)


def test_the_eight_tokens_of_the_docstrings():
    x_BNC = grid_tokens(1, (2, 4))
    assert MaMe(r=0.5, grid=Grid(window=2)).match(x_BNC, (2, 4)).source_S.tolist() == [1, 4, 5, 3, 6, 7]
    scores = torch.tensor([[0.9, 0.1, 0.8, 0.2, 0.7, 0.3]])
    plan = assign(Match(torch.tensor([1, 3, 4, 5, 6, 7]), torch.tensor([[0, 2, 0, 2, 2, 2]]), scores), 8, 3)
    assert plan.index_BK.tolist() == [[0, 2, 3, 5, 7]]
    assert (plan.source_BR.tolist(), plan.row_BR.tolist()) == ([[1, 4, 6]], [[0, 0, 1]])
    assert plan.place_BN.tolist() == [[0, 0, 1, 2, 0, 3, 1, 4]]
    assert plan.size_BK1.flatten().tolist() == [3, 2, 1, 1, 1]
