"""The picture of a merge step shows what the library computes."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from mame_lab.measure import diagram


@pytest.fixture(scope="module")
def step():
    return diagram.merge_patches()


def texts(step):
    return [text.get_text() for text in diagram.draw(step, diagram.THEMES["light"]).axes[0].texts]


def test_the_sources_with_the_nearest_targets_merge(step):
    best_S, nearest_S = step.similarity_TS.max(0)
    removed = best_S.topk(diagram.REMOVED).indices.tolist()
    assert sorted(step.plan.source_BR[0].tolist()) == sorted(2 * source + 1 for source in removed)
    assert sum(step.size_K) == diagram.TOKENS
    for source in removed:
        alike = [2 * source + 1, 2 * int(nearest_S[source])]
        assert torch.equal(*step.restored[alike])
        merged = step.after[step.plan.row_BN[0, alike[0]]]
        torch.testing.assert_close(step.restored[alike[0]], merged)


def test_a_merged_token_is_the_mean_of_its_patches(step):
    for row, picture in enumerate(step.after):
        parts = step.before[step.plan.row_BN[0] == row]
        assert len(parts) == step.size_K[row]
        torch.testing.assert_close(picture, parts.mean(0))


def test_the_picture_tells_similarities_and_sizes(step):
    told = texts(step)
    for similarity in step.similarity_TS.flatten().tolist():
        assert f"{similarity:.2f}".replace("-", "\N{MINUS SIGN}") in told
    assert {str(size) for size in step.size_K if size > 1} <= set(told)


def test_a_file_for_light_and_one_for_dark(tmp_path):
    diagram.main(tmp_path)
    for name, theme in diagram.THEMES.items():
        pixels = np.asarray(Image.open(tmp_path / f"merge_step_{name}.png"))
        assert pixels[0, 0, 3] == 0, "the background is transparent"
        assert (pixels[..., :3] == np.round(255 * np.array(to_rgb(theme.target)))).all(-1).any()
