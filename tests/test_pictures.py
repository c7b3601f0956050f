"""The pictures of an evaluation show the test images, as the model of the run merges them."""

from types import SimpleNamespace

import pytest
import torch
from families import build, images
from lightning.pytorch.plugins import HalfPrecision, Precision
from PIL import Image

import mame_lab
from mame_lab import MameLabError, pictures
from mame_lab.models import family_of
from mame_lab.visualize import owners

PIXELS = images(10).float().sigmoid()


class Data:
    """Test images, normalised by a mean and a standard deviation of 0.5."""

    splits = SimpleNamespace(test=range(len(PIXELS)))

    def sample(self, count: int) -> tuple[torch.Tensor, None]:
        return 2 * PIXELS[torch.linspace(0, len(PIXELS) - 1, count).long()] - 1, None


def draw(model, folder, visualize, precision):
    """What `pictures.draw` writes, on a run in batches of 4."""
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), precision_plugin=precision)
    model_settings, dataset = SimpleNamespace(name="model"), SimpleNamespace(batch_size=4)
    config = SimpleNamespace(visualize=visualize, model=model_settings, dataset=dataset, mame=model.method)
    return pictures.draw(model, Data(), trainer, config, folder)


@pytest.fixture
def shown(monkeypatch):
    """What the figures are made from, by the name of the file."""
    given = {}
    for name in ("merging", "tokens"):
        make = getattr(pictures, f"{name}_figure")

        def record(*arguments, name=name, make=make):
            given[name] = arguments
            return make(*arguments)

        monkeypatch.setattr(pictures, f"{name}_figure", record)
    return given


@pytest.mark.parametrize("precision", [Precision(), HalfPrecision("bf16-true")], ids=["float", "bf16"])
@pytest.mark.parametrize("settings", [{"tau": 0.9}, {"tau": 0.9, "batch": "packed"}, {"r": 5}], ids=str)
def test_every_image_with_its_own_tokens(tmp_path, shown, settings, precision):
    model = mame_lab.apply(build("registers").float().train(), **settings)
    family, places = family_of(model), [0, 1, 3, 5, 7, 9]
    paths = draw(model, tmp_path, len(places), precision)
    assert paths == {"merging": tmp_path / "merging.png", "tokens": tmp_path / "tokens.png"}
    for path in paths.values():
        Image.open(path).verify()

    pixels, owners_by_block, grid, title = shown["merging"]
    torch.testing.assert_close(pixels, PIXELS[places])
    assert grid == (8, 8)
    assert title.startswith("model, ward(")
    counts_DM, unmerged, _ = shown["tokens"]
    assert counts_DM.shape == (6, 10)
    assert unmerged == 69
    model.eval()
    dtype = next(model.parameters()).dtype
    alone = [family.plans(model, (2 * PIXELS[place : place + 1] - 1).to(dtype)) for place in range(len(PIXELS))]
    if dtype == torch.float32:
        for row, place in enumerate(places):
            for owners_BN, expected_1N in zip(owners_by_block, owners(alone[place]), strict=True):
                assert torch.equal(owners_BN[row], expected_1N[0])
        left = torch.tensor([[69 if plan is None else int(plan.tokens()) for plan in plans] for plans in alone])
        assert torch.equal(counts_DM, left.cummin(1).values.T)


def test_no_more_images_than_there_are(tmp_path, shown):
    draw(mame_lab.apply(build("vit").float(), r=5), tmp_path, 64, Precision())
    assert len(shown["merging"][0]) == shown["tokens"][0].shape[1] == len(PIXELS)


def test_a_long_schedule_is_a_title_of_several_lines(tmp_path, shown):
    draw(mame_lab.apply(build("vit").float(), r=[1, 2, 3, 4, 5, 6]), tmp_path, 1, Precision())
    lines = shown["tokens"][2].splitlines()
    assert " ".join(lines).count("r=[1, 2, 3, 4, 5, 6]") == 1
    assert max(map(len, lines)) <= pictures.TITLE


@pytest.mark.parametrize("settings", [{"r": 0}, {"tau": 1.0}, {"r": [0] * 6}], ids=str)
def test_without_merging_there_is_nothing_to_show(settings):
    method = mame_lab.Ward(**settings)
    model = mame_lab.apply(build("vit"), method)
    pictures.check(model, SimpleNamespace(visualize=0, mame=method))
    with pytest.raises(MameLabError, match=r"visualize=3 .* mame=ward\(") as error:
        pictures.check(model, SimpleNamespace(visualize=3, mame=method))
    assert "\n" not in str(error.value)
    pictures.check(mame_lab.apply(model, r=1), SimpleNamespace(visualize=3, mame=method))
