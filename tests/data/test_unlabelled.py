"""A folder of images without classes."""

import re

import pytest
from PIL import Image

from mame_lab.data.unlabelled import Unlabelled
from mame_lab.errors import MameLabError


def files(images):
    return [path for path, _ in images.files]


@pytest.mark.parametrize(("count", "fraction", "held"), [(20, 0.2, 4), (20, 0.5, 10), (2, 0.9, 1), (3, 0.01, 1)])
def test_it_is_split_into_val_and_test(make_folder, count, fraction, held):
    root = make_folder({"photos": count, "photos/more": 1}) / "photos"
    splits = Unlabelled(root=str(root), val_fraction=fraction).splits()
    assert (splits.train, splits.classes) == (None, ["photos"])
    assert (len(splits.val), len(splits.test)) == (held, count - held)
    assert {*files(splits.val), *files(splits.test)} == {str(path) for path in root.glob("*.png")}
    image, label = splits.test[0]
    assert (image.mode, image.size, label) == ("RGB", (6, 4), 0)


def test_the_seed_says_which_are_val(make_folder):
    root = str(make_folder({"photos": 30}) / "photos")
    held = [files(Unlabelled(root=root, split_seed=seed).splits().val) for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


def test_what_is_left_out_is_told(make_folder, caplog):
    root = make_folder({"photos": 2, "photos/more": 1}) / "photos"
    Image.new("RGB", (6, 4)).save(root / "a.jfif", "JPEG")
    (root / "notes.txt").touch()
    splits = Unlabelled(root=str(root)).splits()
    assert len(splits.val) + len(splits.test) == 3
    assert f"dataset.root={root} leaves out 1 folder (more) and 1 file (notes.txt): images are" in caplog.text


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("cat", "dataset.root={root} holds fewer than 2 images: put some"),
        ("none", "dataset.root={root} does not exist: set"),
    ],
)
def test_what_is_wrong_is_said(make_folder, folder, message):
    root = make_folder({"cat": 1}) / folder
    with pytest.raises(MameLabError, match="^" + re.escape(message.format(root=root))):
        Unlabelled(root=str(root)).splits()


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_bad_val_fraction_is_refused(fraction):
    with pytest.raises(MameLabError, match=f"^dataset.val_fraction={fraction} is out of range"):
        Unlabelled(val_fraction=fraction)
