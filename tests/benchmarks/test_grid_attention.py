"""Attention between merging and restoring: what is measured, by arms that say what they do."""

import csv
from statistics import mean, stdev

import pytest
import torch
from commands import BENCHMARK
from families import build, images
from torch import nn

from mame_lab.benchmarks.grid_attention import run
from mame_lab.benchmarks.grid_attention.run import Layer, error, layer_errors, layers
from mame_lab.benchmarks.grid_attention.settings import GridAttention
from mame_lab.benchmarks.grid_attention.variants import ARMS, CheckerboardWard, EvenWard, spread
from mame_lab.errors import MameLabError
from mame_lab.merging import Ward
from mame_lab.merging.grid.assignment import assign
from mame_lab.merging.grid.settings import Grid

GRID = (8, 8)
TOKENS = 64


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, TOKENS, 48, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def copies() -> torch.Tensor:
    """Tokens that are equal in cells of 2 x 2, and in a row of these."""
    cells_1HWC = noise()[:, :16].unflatten(1, (4, 4)).clone()
    cells_1HWC[:, 0] = cells_1HWC[:, 0, :1]
    return cells_1HWC.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)


def layer_of(x_1NC: torch.Tensor) -> Layer:
    attention = build("vit").blocks[0].attn.requires_grad_(False)
    key_1ND = attention.qkv(x_1NC)[..., 48:96].unflatten(2, (3, 16)).mean(2)
    return Layer(attention, x_1NC, key_1ND, attention(x_1NC))


def test_every_arm_is_measured_at_every_budget(entry_point, tmp_path, capsys):
    entry_point("eval", tmp_path, *BENCHMARK, "benchmark=grid_attention", "benchmark.r=[0.3,0.7]", "benchmark.images=2")
    with (tmp_path / "grid_attention.csv").open() as file:
        rows = {(row["arm"], row["r"]): row for row in csv.DictReader(file)}
    assert [arm for arm, r in rows if r == "0.3"] == list(ARMS)
    assert [arm for arm, r in rows if r == "0.7"] == [arm for arm in ARMS if not arm.startswith("checkerboard")]
    for row in rows.values():
        assert float(row["error"]) > 0
        assert 0 < float(row["search"]) < 0.5
    assert float(rows["on keys", "0.3"]["search"]) < float(rows["ward", "0.3"]["search"])
    reference = rows["ward", "0.3"]
    assert (reference["of_ward"], reference["deviation"]) == ("1.0", "0.0")
    assert float(rows["not proportional", "0.3"]["of_ward"]) > 1.5
    assert float(rows["not proportional", "0.3"]["deviation"]) > 0
    printed = capsys.readouterr().out
    assert f"{float(reference['error']):.3f} (1.00x)" in printed
    assert "images 2, pixels 40x40" in " ".join(printed.split())


def test_a_layer_is_given_what_the_model_gives_it_without_prefix():
    model, image = build("registers"), images(1)
    found = list(layers(model, image))
    assert len(found) == len(model.blocks)
    x_1NC = model._pos_embed(model.patch_embed(image))
    for layer, block in zip(found, model.blocks, strict=True):
        given_1NC = block.norm1(x_1NC)[:, model.num_prefix_tokens :]
        torch.testing.assert_close(layer.x_1NC, given_1NC)
        torch.testing.assert_close(layer.y_1NC, block.attn(given_1NC))
        _, key, _ = block.attn.qkv(given_1NC).unflatten(2, (3, 3, 16)).unbind(2)
        torch.testing.assert_close(layer.key_1ND, key.mean(2))
        x_1NC = block(x_1NC)


@torch.inference_mode()
def test_a_row_is_a_mean_over_layers_and_images():
    model, x = build("vit"), images(3)
    ward, cosine = [], []  # one of each image
    for image in x.split(1):
        errors = [each for layer in layers(model, image) for each in layer_errors(layer, GRID, [0.5])]
        ward.append(mean(found for arm, _, found in errors if arm == "ward"))
        cosine.append(mean(found for arm, _, found in errors if arm == "cosine"))
    ratios = [c / w for c, w in zip(cosine, ward, strict=True)]
    rows = {row.arm: row for row in run.rows(GridAttention(r=[0.5]), model, x)}
    assert rows["cosine"][2:5] == pytest.approx((mean(cosine), mean(ratios), stdev(ratios)))


@pytest.mark.parametrize("name", ARMS)
def test_nothing_merged_is_no_error(name):
    layer = layer_of(noise())
    assert error(ARMS[name], layer, ARMS[name].method.match(layer.given(ARMS[name]), GRID), 0) < 1e-12


def test_copies_are_neutral_with_proportional_attention_alone():
    """With half of the tokens merged, so that some stand for more than others."""
    errors = {arm: found for arm, _, found in layer_errors(layer_of(copies()), GRID, [0.5])}
    assert {arm for arm, found in errors.items() if found < 1e-12} == {
        name for name, arm in ARMS.items() if arm.method.prop_attn
    }
    assert errors["not proportional"] > 0.05
    assert errors["tomesd"] > 0.05


class Same(nn.Module):
    """Gives what it is given."""

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor) -> torch.Tensor:
        return x


def test_the_error_is_relative_to_how_far_the_output_lies_from_its_mean():
    x_1NC = noise()
    method = Ward()
    match = method.match(x_1NC, GRID)
    plan = assign(match, TOKENS, 20)
    expected = (plan.restore(plan.merge(x_1NC)) - x_1NC).norm() / (x_1NC - x_1NC.mean(1)).norm()
    shifted = Layer(Same(), x_1NC, x_1NC, x_1NC)
    assert error(ARMS["ward"], shifted, match, 20) == pytest.approx(float(expected))


def test_tokens_that_cancel_get_no_norm_back():
    cells_1HWC = noise()[:, :16].view(1, 4, 4, -1).repeat_interleave(2, 1).repeat_interleave(2, 2)
    cells_1HWC[:, 1::2] *= -1
    x_1NC = cells_1HWC.flatten(1, 2)
    match = Ward().match(x_1NC, GRID)
    cells_S = match.source_S // 16 * 16 + match.source_S % 8 // 2 * 2
    match = match._replace(nearest_BS=cells_S[None])
    layer = Layer(Same(), x_1NC, x_1NC, x_1NC)
    assert error(ARMS["half of the norm back"], layer, match, 48) == pytest.approx(
        error(ARMS["ward"], layer, match, 48)
    )


def test_in_every_window_the_nearest_sources_are_removed_and_as_many_of_them():
    x_1NC = noise() * torch.linspace(0.1, 1, TOKENS, dtype=torch.float64)[:, None]  # Lower rows are farther apart.
    match = Ward(grid=Grid(window=4)).match(x_1NC, GRID)
    ranked = match.source_S[match.score_BS[0].argsort(descending=True)].tolist()
    window = lambda place: (place // 8 // 4, place % 8 // 4)  # noqa: E731
    nearest = {place for k in range(4) for place in [each for each in ranked if window(each) == divmod(k, 2)][:4]}
    even = assign(EvenWard(grid=Grid(window=4)).match(x_1NC, GRID), TOKENS, 16).source_BR[0].tolist()
    assert set(even) == nearest != set(ranked[:16])


def test_shorter_windows_lose_the_same_share():
    x_1NC = torch.randn(1, 121, 48, generator=torch.Generator().manual_seed(0))
    match = EvenWard(grid=Grid(window=4)).match(x_1NC, (11, 11))
    removed = set(assign(match, 121, len(match.source_S) // 2).source_BR[0].tolist())
    for row, column in [(0, 0), (0, 8), (8, 8)]:
        of_window = {i for i in match.source_S.tolist() if (i // 11 // 4 * 4, i % 11 // 4 * 4) == (row, column)}
        assert abs(len(removed & of_window) - len(of_window) / 2) <= 1


def test_a_checkerboard_has_a_target_beside_every_source():
    x_1NC = noise()
    match = CheckerboardWard().match(x_1NC, GRID)
    targets = [place for place in range(TOKENS) if (place // 8 + place % 8) % 2 == 0]
    assert sorted({*targets, *match.source_S.tolist()}) == list(range(TOKENS))
    assert len(match.source_S) == TOKENS // 2
    distance_NN = torch.cdist(x_1NC[0], x_1NC[0])
    nearest = [targets[distance_NN[source, targets].argmin()] for source in match.source_S]
    assert match.nearest_BS[0].tolist() == nearest


def test_spread_ever_less_is_whole():
    x_1NC = noise()
    match = Ward(grid=Grid(window=0)).match(x_1NC, GRID)
    plan = assign(match, TOKENS, 30)
    cold, warm = (spread(plan, match, x_1NC, temperature) for temperature in (1e-6, 0.3))
    for name, given in (("merge", x_1NC), ("restore", x_1NC[:, :34])):
        torch.testing.assert_close(getattr(cold, name)(given), getattr(plan, name)(given))
        assert not torch.allclose(getattr(warm, name)(given), getattr(plan, name)(given))
    torch.testing.assert_close(cold.bias_B1K(), plan.bias_B1K())
    assert warm.bias_B1K().exp().sum() == pytest.approx(TOKENS)


def test_more_than_the_sources_of_a_grid_is_an_error():
    x_1NC = noise()[:, :49]
    with pytest.raises(MameLabError, match=r"benchmark.r=0.75 is too large for a grid of 7 x 7, where 33 of 49"):
        list(layer_errors(layer_of(x_1NC), (7, 7), [0.75]))


def test_other_models_are_refused(tmp_path):
    with pytest.raises(MameLabError, match=r"benchmark=grid_attention looks at .* the model is a Eva"):
        run.run(GridAttention(), build("eva02"), None, None, None, tmp_path)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"r": [0.8]}, r"benchmark.r=\[0.8\]"), ({"r": []}, r"benchmark.r=\[\]"), ({"images": 1}, "benchmark.images=1")],
)
def test_settings_that_are_wrong(settings, named):
    with pytest.raises(MameLabError, match=named):
        GridAttention(**settings)
