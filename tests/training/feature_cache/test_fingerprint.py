"""What the cached features follow from changes their key, and nothing else does."""

import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mame_lab import MameLabError
from mame_lab.data.folders import LeftOut, list_images
from mame_lab.merging import Ward
from mame_lab.training.feature_cache import fingerprint


@pytest.fixture
def folder(tmp_path):
    for name in ("cat/0.png", "cat/1.png", "dog/0.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), "teal").save(path)
    return tmp_path / "images"


def test_images_on_disk_are_known_by_their_files(folder):
    before = fingerprint.images(list_images(folder, LeftOut()))
    assert fingerprint.images(list_images(folder, LeftOut())) == before

    path = folder / "cat/1.png"
    Image.new("RGB", (4, 4), "navy").save(path)
    os.utime(path, (1, 1))
    edited = fingerprint.images(list_images(folder, LeftOut()))
    (folder / "dog/0.png").rename(folder / "cat/2.png")
    Image.new("RGB", (4, 4), "teal").save(folder / "dog/1.png")
    moved = fingerprint.images(list_images(folder, LeftOut()))
    assert len({before, edited, moved}) == 3
    listed = list_images(folder, LeftOut())
    path.unlink()
    with pytest.raises(MameLabError, match=r"1.png cannot be read"):
        fingerprint.images(listed)


class Lazy:
    """Images that are read when they are indexed, of a dataset that says nothing of its files."""

    def __init__(self, paths):
        self.paths = paths


@pytest.mark.parametrize("kind", [str, Path])
def test_files_are_known_wherever_their_paths_are_held(folder, kind):
    images = [Lazy([kind(folder / "cat/0.png")]), {"b": (kind(folder / "dog/0.png"), 1)}]
    before = fingerprint.images(images)
    assert fingerprint.images(images) == before
    for name in ("cat/0.png", "dog/0.png"):
        os.utime(folder / name, (1, 1))
        edited = fingerprint.images(images)
        assert edited != before
        before = edited


@pytest.mark.parametrize("change", ["pixel", "label", "order"])
def test_images_in_memory_are_known_by_their_content(change):
    def images():
        return [(Image.new("RGB", (4, 4), colour), label) for label, colour in enumerate(("teal", "navy"))]

    before, changed = fingerprint.images(images()), images()
    assert fingerprint.images(images()) == before
    if change == "pixel":
        changed[0][0].putpixel((0, 0), (1, 2, 3))
    elif change == "label":
        changed[0] = (changed[0][0], 5)
    else:
        changed.reverse()
    assert fingerprint.images(changed) != before


def test_weights_that_train_do_not_count():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model[1].requires_grad_(False)
    frozen = fingerprint.weights(model)
    torch.nn.init.zeros_(model[0].weight)
    assert fingerprint.weights(model) == frozen
    model[1].running_mean += 1
    assert fingerprint.weights(model) != frozen


def test_a_method_that_is_edited_is_another(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "from mame_lab.merging import Ward\nclass Mine(Ward):\n    power = {}\n"
    hashes = []
    for number in (0.5, 0.5, 0.7):
        (tmp_path / "my_method.py").write_text(source.format(number))
        sys.modules.pop("my_method", None)
        import my_method

        hashes.append(fingerprint.code(my_method.Mine(r=1)))
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[0]["sources"] != fingerprint.code(Ward(r=1))["sources"]
    assert hashes[0]["torch"] == torch.__version__.split("+")[0]


def test_what_differs_is_named_by_the_most_similar_of_the_same_split():
    parts = {"split": "train", "weights": "a", "mame": {"r": 8}, "stage": 11}
    others = [
        parts | {"split": "val", "weights": "b"},
        parts | {"weights": "b", "stage": 10, "mame": None},
        parts | {"mame": {"r": 9}},
        {"split": "train", "weights": "a"},
    ]
    assert fingerprint.differences(parts, iter(others)) == ["mame"]
    assert fingerprint.differences(parts, iter([])) == []
    assert fingerprint.differences(parts | {"stage": 13}, iter([parts | {"weights": "b"}])) == ["stage"]
    views = [parts | {"view": view, "augmentation": "crop"} for view in (0, 1)]
    assert fingerprint.differences(views[1], iter(views[:1])) == []
    assert fingerprint.differences(views[1] | {"mame": None}, iter(views)) == ["mame"]
    assert fingerprint.differences(views[1], iter([parts | {"view": None, "augmentation": None}])) == ["augmentation"]
    assert len({fingerprint.key(each) for each in (parts, *others)}) == 5
    assert fingerprint.key(fingerprint.plain(parts)) == fingerprint.key(parts)
