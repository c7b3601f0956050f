"""The pictures of an evaluation show the test images, as the model of the run merges them."""

from types import SimpleNamespace

import pytest
import torch
from families import build, images
from lightning.pytorch.plugins import HalfPrecision, Precision
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

import mame_lab
from mame_lab import MameLabError
from mame_lab.measure import pictures
from mame_lab.measure.figures import owners
from mame_lab.models import family_of

PIXELS = images(6).float().sigmoid()
X = (PIXELS - torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)


class Data:
    splits = SimpleNamespace(test=range(len(PIXELS)))
    dataset = SimpleNamespace(batch_size=2)

    def sample(self, count: int) -> tuple[torch.Tensor, None]:
        return X[torch.linspace(0, len(X) - 1, count).long()], None


def draw(model, folder, visualize, precision):
    """What `pictures.draw` writes, on a run in batches of 2."""
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), precision_plugin=precision)
    return pictures.draw(model, Data(), trainer, visualize, f"model, {model.method}", folder)


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


@pytest.mark.parametrize("batch", ["per_sample", "packed"])
def test_every_image_with_its_own_tokens(tmp_path, shown, batch):
    model, places = mame_lab.apply(build("registers").float().train(), tau=0.9, batching=batch), [0, 2, 5]
    paths = draw(model, tmp_path, len(places), Precision())
    assert paths == {"merging": tmp_path / "merging.png", "tokens": tmp_path / "tokens.png"}
    for path in paths.values():
        Image.open(path).verify()
    assert model.training

    model.eval()
    alone = [family_of(model).plans(model, x[None]) for x in X]
    pixels, owners_by_block, grid, title = shown["merging"]
    torch.testing.assert_close(pixels, PIXELS[places])
    assert (grid, title[:12]) == ((8, 8), "model, ward(")
    for row, place in enumerate(places):
        for owners_BN, expected_1N in zip(owners_by_block, owners(alone[place]), strict=True):
            assert torch.equal(owners_BN[row], expected_1N[0])
    counts_DM, unmerged, _ = shown["tokens"]
    assert unmerged == 69
    assert counts_DM.T.tolist() == [[int(plan.tokens()) for plan in plans] for plans in alone]


def test_no_more_images_than_there_are_in_half_precision(tmp_path, shown):
    draw(mame_lab.apply(build("registers").float(), r=5, blocks=1), tmp_path, 64, HalfPrecision("bf16-true"))
    torch.testing.assert_close(shown["merging"][0], PIXELS)
    assert shown["tokens"][0].unique().tolist() == [64]
    assert shown["tokens"][0].shape == (6, 6)


def test_a_long_schedule_is_a_title_of_several_lines(tmp_path, shown):
    draw(mame_lab.apply(build("vit").float(), r=[1, 2, 3, 4, 5, 6]), tmp_path, 1, Precision())
    lines = shown["tokens"][2].splitlines()
    assert " ".join(lines).count("r=[1, 2, 3, 4, 5, 6]") == 1
    assert max(map(len, lines)) <= pictures.TITLE


@pytest.mark.parametrize("settings", [{"r": 0}, {"tau": 1.0}, {"r": [0] * 6}], ids=str)
def test_without_merging_there_is_nothing_to_show(settings):
    method = mame_lab.Ward(**settings)
    model = mame_lab.apply(build("vit"), method)
    pictures.check(model, 0, method)
    with pytest.raises(MameLabError, match=r"visualize=3 .* mame=ward\(") as error:
        pictures.check(model, 3, method)
    assert "\n" not in str(error.value)
    pictures.check(mame_lab.apply(model, r=1), 3, method)
