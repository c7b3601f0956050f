"""The bundled photos: crops that stay the same, whatever else is set, of files that are really shipped."""

import random
import sys
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from mame_lab.data import sample_photos
from mame_lab.data.sample_photos import KINDS, SCENES, SamplePhotos
from mame_lab.errors import MameLabError


def content(crops) -> list[tuple[tuple[int, int], bytes, int]]:
    return [(image.size, image.tobytes(), label) for image, label in (crops[i] for i in range(len(crops)))]


def test_a_crop_is_a_square_of_its_photo():
    splits = SamplePhotos(crops=2).splits()
    assert len(splits.classes) == len(set(splits.classes)) == 16
    for part in (splits.train, splits.val, splits.test):
        assert [label for _, label in part.boxes] == [*range(16), *range(16)]
    for (package, filename), name, ((left, top, right, bottom), label) in zip(
        KINDS["all"], splits.classes, splits.test.boxes[:16], strict=True
    ):
        photo = Image.open(files(package) / filename)
        short, pixels = min(photo.size), np.asarray(photo)
        pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
        assert right - left == bottom - top
        assert short / 2 <= right - left <= short
        image, same_label = splits.test[label]
        assert (image.mode, same_label, name) == ("RGB", label, filename.split(".")[0])
        np.testing.assert_array_equal(np.asarray(image), pixels[top:bottom, left:right])


def test_the_crops_differ_and_reach_every_side():
    splits = SamplePhotos(crops=16).splits()
    boxes = Counter(entry for part in (splits.train, splits.val, splits.test) for entry in part.boxes)
    assert max(boxes.values()) == 1
    for label, photo in enumerate(splits.test.photos):
        left, top, right, bottom = np.array([box for box, box_label in boxes if box_label == label]).T
        reach = [left.min() / photo.width, top.min() / photo.height, right.max() / photo.width]
        np.testing.assert_allclose([*reach, bottom.max() / photo.height], [0, 0, 1, 1], atol=0.05)


def test_the_crops_stay_the_same():
    random.seed(1)
    first = SamplePhotos(crops=1).splits()
    random.seed(2)
    assert content(first.test) == content(SamplePhotos(crops=1).splits().test)
    assert content(first.test) == content(SamplePhotos(crops=3).splits().test)[:16]
    assert first.test.boxes[0] == ((117, 99, 444, 426), 0)
    assert first.test.boxes != SamplePhotos(crops=1, crop_seed=1).splits().test.boxes


def test_kinds_part_the_photos():
    everything, scenes, textures = (SamplePhotos(crops=1, kind=kind).splits() for kind in ("all", "scenes", "textures"))
    assert textures.classes == ["brick", "grass", "gravel"]
    assert everything.classes == scenes.classes + textures.classes
    assert everything.val.boxes[:13] == scenes.val.boxes
    assert [box for box, _ in everything.val.boxes[13:]] == [box for box, _ in textures.val.boxes]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"kind": "faces"}, "dataset.kind=faces is unknown: choose one of all, scenes, textures"),
        ({"crops": 0}, "dataset.crops=0 is not positive: set it to 1 or more"),
    ],
)
def test_bad_settings_are_named(settings, line):
    with pytest.raises(MameLabError, match=f"^{line}$"):
        SamplePhotos(**settings)


@pytest.mark.parametrize(
    ("missing", "line"),
    [
        (("skimage.data", "gone.png"), "needs gone.png, which the installed scikit-image lacks"),
        (("sklearn.datasets.images", "gone.jpg"), "needs gone.jpg, which the installed scikit-learn lacks"),
    ],
)
def test_a_photo_that_is_not_shipped_is_named(missing, line, monkeypatch):
    monkeypatch.setitem(sample_photos.KINDS, "scenes", [*SCENES, missing])
    with pytest.raises(MameLabError, match=f"^dataset=sample_photos {line}: install a version of"):
        SamplePhotos(kind="scenes").splits()


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(MameLabError, match="which the installed scikit-image lacks"):
        SamplePhotos().splits()
