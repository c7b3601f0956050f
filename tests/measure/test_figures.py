"""Pictures of merging: every patch in the token that holds most of it, one colour a token, the panels that are said."""

from io import BytesIO
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from mame_lab import MaMe, MameLabError
from mame_lab.measure.figures import DROPPED, merging_figure, owners, token_map, tokens_figure, unnormalise
from mame_lab.merging.plan import MergePlan
from mame_lab.merging.tokens import Tokens

GRID = (2, 3)


class Made(NamedTuple):
    """A plan of which only the matrix is known."""

    M_BKN: torch.Tensor
    prefix: int

    @property
    def row_BN(self) -> torch.Tensor:
        return self.M_BKN.argmax(1)

    def matrix(self) -> torch.Tensor:
        return self.M_BKN


def step(tokens: int, *removed: dict[int, dict[int, float]], prefix: int = 1) -> Made:
    """`leaving[b][n]` says to which tokens, and how much to each, token n of sample b goes; indices before the step."""
    M_BKN = torch.zeros(len(removed), tokens - len(removed[0]), tokens)
    for M_KN, goes in zip(M_BKN, removed, strict=True):
        kept = [n for n in range(tokens) if n not in goes]
        M_KN[range(len(kept)), kept] = 1
        for source, shares in goes.items():
            for target, share in shares.items():
                M_KN[kept.index(target), source] = share
    return Made(M_BKN, prefix)


def test_owners_follow_the_tokens():
    first = step(7, {2: {1: 1.0}, 6: {3: 0.4, 5: 0.6}}, {1: {3: 1.0}, 5: {6: 1.0}})
    second = step(5, {4: {2: 1.0}}, {1: {2: 1.0}})
    before, after_first, between, after_second = owners([None, first, None, second])
    assert before.tolist() == [[1, 2, 3, 4, 5, 6]] * 2
    assert after_first.tolist() == [[1, 1, 2, 3, 4, 4], [2, 1, 2, 3, 4, 4]]
    assert torch.equal(between, after_first)
    assert after_second.tolist() == [[1, 1, 2, 3, 2, 2], [1, 1, 1, 2, 3, 3]]


def test_a_spread_patch_belongs_to_its_largest_share_in_the_end():
    """After the first step token 1 holds most of patch 6; then 3 and 5, which hold 0.3 each, become one."""
    first = step(7, {6: {1: 0.4, 3: 0.3, 5: 0.3}})
    second = step(6, {5: {3: 1.0}})
    assert [found[0, -1].item() for found in owners([first, second])] == [1, 3]


def test_dropped_patches_stay_dropped():
    found = owners([step(6, {1: {}}, prefix=0), step(5, {4: {0: 1.0}}, prefix=0)])
    assert [each[0].tolist() for each in found] == [[0, DROPPED, 1, 2, 3, 4], [0, DROPPED, 1, 2, 3, 0]]


def test_padding_does_not_matter():
    noise = torch.randn(3, 25, 8, generator=torch.Generator().manual_seed(0))
    x = torch.ones(8) + torch.tensor([0.1, 0.5, 1.0]).view(3, 1, 1) * noise

    def found(x: torch.Tensor) -> tuple[list[torch.Tensor], list[MergePlan]]:
        tokens, plans = Tokens(x, x, torch.ones(*x.shape[:2], 1), prefix=1), []
        for _ in range(2):
            plans.append(MaMe(tau=0.9).plan(tokens, None))
            x, size = plans[-1].merge(tokens.x_BNC, tokens.size_BN1)
            tokens = Tokens(x, x, size, prefix=1, valid_BN=plans[-1].valid_BK)
        return owners(plans), plans

    together, plans = found(x)
    assert any(plan.valid_BK is not None and not plan.valid_BK.all() for plan in plans)
    for sample in range(3):
        alone, _ = found(x[sample : sample + 1])
        for each, expected in zip(together, alone, strict=True):
            assert torch.equal(each[sample], expected[0])


def test_no_merging_is_no_picture():
    with pytest.raises(MameLabError, match="no block merges"):
        owners([None, None])


def patches(*grey: float) -> torch.Tensor:
    """An image of grey patches of 14 x 14 pixels."""
    image = torch.tensor(grey).view(1, *GRID).repeat_interleave(14, 1).repeat_interleave(14, 2)
    return image.expand(3, -1, -1)


def test_a_token_is_one_colour_within_a_white_line():
    """Tokens 7 and 9 hold two patches each, those of 9 lie apart; patch 1 is its own; patch 4 is dropped."""
    picture = token_map(patches(0, 0.2, 1, 1, 0.5, 0), torch.tensor([9, 5, 7, 9, DROPPED, 7]), GRID)
    cell = picture.shape[0] // 2
    assert picture.shape == (2 * cell, 3 * cell, 3)
    cells = picture.reshape(2, cell, 3, cell, 3).swapaxes(1, 2).reshape(6, cell, cell, 3)
    inner = cells[:, 2:-2, 2:-2]
    for one, other in ((0, 3), (2, 5)):
        assert (inner[one] == inner[one, 0, 0]).all()
        assert (inner[one] == inner[other]).all()
        assert abs(inner[one, 0, 0] - 0.5).max() < 0.3
    assert abs(inner[0, 0, 0] - inner[2, 0, 0]).max() > 0.1
    np.testing.assert_allclose(cells[1][cell // 2, cell // 2], 0.2, atol=1e-6)
    assert inner[4].max() < 0.3
    assert len(np.unique(inner[4])) == 2

    def line(patch: int, *edge) -> bool:
        return bool((cells[patch][edge] == 1).all())

    middle = slice(2, -2)
    assert [line(0, middle, -1), line(0, -1, middle)] == [True, False]
    assert [line(2, middle, 0), line(2, -1, middle)] == [True, False]
    assert [line(1, middle, 0), line(4, middle, 0), line(3, -1, middle)] == [False] * 3


def test_the_map_of_no_merging_is_the_image():
    picture = token_map(patches(0, 0.2, 0.4, 0.6, 0.8, 1), torch.arange(1, 7), GRID)
    assert picture.min() == 0
    centres = picture[picture.shape[0] // 4 :: picture.shape[0] // 2, picture.shape[1] // 6 :: picture.shape[1] // 3]
    np.testing.assert_allclose(centres[..., 0], np.array([[0, 0.2, 0.4], [0.6, 0.8, 1]]), atol=1e-6)


def test_the_figure_shows_an_even_choice_of_the_blocks_that_merged():
    pixels = torch.rand(2, 3, 4, 36)
    first = torch.arange(18).expand(2, 18)
    found = [torch.stack([first[0].clamp(min=left), first[1]]) for left in range(10)]
    figure = merging_figure(pixels, [found[0], found[0], *found[1:], found[-1]], (2, 9), "r=1")
    shown = [2, 4, 6, 8, 10]
    captions = [axis.get_title() for axis in figure.axes]
    assert captions[:6] == ["18 patches", *(f"block {block}: {19 - block} tokens" for block in shown)]
    assert captions[6:] == ["18 patches", *(f"block {block}: 18 tokens" for block in shown)]
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), pixels[0].permute(1, 2, 0))
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), token_map(pixels[0], found[3][0], (2, 9)))
    assert figure.get_suptitle() == "r=1"


def test_the_figure_is_as_wide_as_its_images():
    figure = merging_figure(torch.rand(1, 3, 4, 12), [torch.tensor([[DROPPED] * 2 + [0] * 5 + [1] * 5])], (2, 6), "")
    assert figure.axes[1].get_title() == "block 0: 2 tokens"
    file = BytesIO()
    figure.savefig(file)
    width, height = Image.open(file).size
    assert 3 < width / height < 6


def test_tokens_by_block():
    counts = torch.stack([torch.full((101,), 50), torch.arange(101)])
    axis = tokens_figure(counts, unmerged=120, title="tau=0.9").axes[0]
    unmerged, median = axis.lines
    assert set(unmerged.get_ydata()) == {120}
    assert list(median.get_ydata()) == [50, 50]
    bands = [collection.get_paths()[0].vertices for collection in axis.collections]
    assert [(x_y[x_y[:, 0] == 1, 1].min(), x_y[x_y[:, 0] == 1, 1].max()) for x_y in bands] == [(5, 95), (25, 75)]
    assert list(axis.get_xticks()) == [0, 1]
    assert axis.get_ylim()[0] == 0
    labels = [text.get_text() for text in axis.figure.legends[0].get_texts()]
    assert labels == ["unmerged: 120", "5 to 95 % of the images", "25 to 75 %", "median"]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == ("block", "tokens after the block", "tau=0.9")


def test_unnormalise_gives_back_the_pixels():
    pixels = torch.rand(2, 3, 4, 5)
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    x = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(unnormalise(x, mean, std), pixels)
    assert unnormalise(torch.full((1, 3, 1, 1), 9.0), mean, std).unique().tolist() == [1]
