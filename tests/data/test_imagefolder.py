"""Folders of images: what is found, how it is split, and what is refused."""

import logging
import os
import re
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from mame_lab.data import ImageFolder
from mame_lab.errors import MameLabError


def files(images):
    return [path for path, _ in images.files]


def test_a_single_folder_is_split_by_class(make_folder):
    root = make_folder({"dog": 20, "cat": 10, "cow": 2})
    splits = ImageFolder(root=str(root), val_fraction=0.3).splits()
    assert splits.classes == ["cat", "cow", "dog"]
    assert splits.test is splits.val
    assert Counter(label for _, label in splits.train.files) == {0: 7, 1: 1, 2: 14}
    assert Counter(label for _, label in splits.val.files) == {0: 3, 1: 1, 2: 6}
    assert len(set(files(splits.train)) | set(files(splits.val))) == 32
    assert all(Path(path).parent.name == splits.classes[label] for path, label in splits.train.files)

    other_seed = ImageFolder(root=str(root), val_fraction=0.3, split_seed=1).splits()
    assert set(files(other_seed.val)) != set(files(splits.val))


def test_the_split_does_not_depend_on_the_order_of_the_file_system(make_folder, monkeypatch):
    root = make_folder({"cat": 9, "dog": 9})
    expected = ImageFolder(root=str(root)).splits()
    scandir, iterdir = os.scandir, Path.iterdir

    @contextmanager
    def backwards(folder):
        with scandir(folder) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=True)

    monkeypatch.setattr(os, "scandir", backwards)
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(sorted(iterdir(folder), reverse=True)))
    assert ImageFolder(root=str(root)).splits() == expected


def test_images_come_in_mixed_order(make_folder):
    splits = ImageFolder(root=str(make_folder({"val/cat": 30, "val/dog": 30}))).splits()
    assert {label for _, label in splits.val.files[:10]} == {0, 1}


@pytest.mark.parametrize("extra", [{}, {"test/cat": 1, "test/dog": 2}])
def test_train_and_val_folders_are_taken_as_they_are(make_folder, extra):
    root = make_folder({"train/cat": 5, "train/dog": 4, "val/cat": 2, "val/dog": 1} | extra)
    splits = ImageFolder(root=str(root)).splits()
    assert splits.classes == ["cat", "dog"]
    assert {Path(path).parents[1].name for path in files(splits.train)} == {"train"}
    assert {Path(path).parents[1].name for path in files(splits.val)} == {"val"}
    assert {Path(path).parents[1].name for path in files(splits.test)} == ({"test"} if extra else {"val"})
    assert (len(splits.train), len(splits.val)) == (9, 3)


def test_val_is_cut_from_train_where_there_is_only_test_beside_it(make_folder):
    root = make_folder({"train/cat": 10, "train/dog": 5, "test/cat": 3, "test/dog": 1})
    splits = ImageFolder(root=str(root)).splits()
    assert Counter(label for _, label in splits.train.files) == {0: 8, 1: 4}
    assert Counter(label for _, label in splits.val.files) == {0: 2, 1: 1}
    assert len(set(files(splits.train)) | set(files(splits.val))) == 15
    assert {Path(path).parents[1].name for path in files(splits.train) + files(splits.val)} == {"train"}
    assert {Path(path).parents[1].name for path in files(splits.test)} == {"test"}
    assert len(splits.test) == 4


def test_a_class_may_be_called_train(make_folder):
    assert ImageFolder(root=str(make_folder({"train": 3, "plane": 3}))).splits().classes == ["plane", "train"]


def test_val_alone_is_enough_to_evaluate(make_folder):
    splits = ImageFolder(root=str(make_folder({"val/cat": 2, "val/dog": 1}))).splits()
    assert splits.train is None
    assert len(splits.val) == 3


def test_images_become_rgb_and_other_files_are_left_out(make_folder):
    root = make_folder({"val/cat": 0, "val/.cache": 1})
    Image.new("RGBA", (3, 2), (10, 20, 30, 255)).save(root / "val/cat/a.PNG")
    (root / "val/cat/notes.txt").write_text("not an image")
    (root / "val/cat/._a.png").write_bytes(b"resource fork")
    splits = ImageFolder(root=str(root)).splits()
    assert len(splits.val) == 1
    image, label = splits.val[0]
    assert (image.mode, image.size, image.getpixel((0, 0)), label) == ("RGB", (3, 2), (10, 20, 30), 0)


@pytest.mark.parametrize("extension", ["jfif", "jpe", "avif", "jp2", "tga", "ico", "mpo", "PNM"])
def test_whatever_pillow_reads_is_an_image(make_folder, extension, caplog):
    root = make_folder({"val/cat": 0})
    Image.new("RGB", (16, 16), "teal").save(root / f"val/cat/a.{extension}")
    images = ImageFolder(root=str(root)).splits().val
    assert (len(images), images[0][0].mode, caplog.text) == (1, "RGB", "")


@pytest.mark.parametrize("extension", ["pdf", "eps", "mpg", "h5", "wmf", "txt", ""])
def test_what_pillow_alone_cannot_read_is_told(make_folder, extension, caplog):
    root = make_folder({"val/cat": 1})
    (root / f"val/cat/a.{extension}").touch()
    assert len(ImageFolder(root=str(root)).splits().val) == 1
    assert f"leaves out 1 file (val/cat/a.{extension})" in caplog.text


def test_what_is_left_out_is_told_in_one_line(make_folder, caplog):
    root = make_folder({"train/cat": 3, "train/cat/2024": 2, "val/cat": 1, "val/cat/more.png": 1, "val/.cache": 1})
    expected = sorted(str(path) for path in root.glob("train/cat/*.png"))
    for name in ("b.txt", "a.csv", "d.heic", "c.json", ".DS_Store", "Thumbs.db"):
        (root / "train/cat" / name).touch()
    Image.new("RGB", (6, 4)).save(root / "val/loose.png")
    Image.new("RGB", (6, 4)).save(root / "loose.png")
    (root / "val/README").touch()
    (root / "train/cat/link").symlink_to(root / "val")
    with caplog.at_level(logging.WARNING):
        splits = ImageFolder(root=str(root)).splits()
    assert sorted(files(splits.train)) == expected
    assert len(splits.val) == 1
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == (
        f"dataset.root={root} leaves out 3 folders (train/cat/2024, train/cat/link, val/cat/more.png) and 6 files "
        "(loose.png, train/cat/a.csv, train/cat/b.txt, ...): images are files that Pillow reads, directly in a "
        "class folder"
    )


REFUSED = {
    "no class folder": ({}, "{root} holds no class folders"),
    "an empty class": ({"cat": 2, "dog": 0}, "class folder {root}/dog holds no images"),
    "an empty class in val": (
        {"train/cat": 1, "train/dog": 1, "val/cat": 1, "val/dog": 0},
        "class folder {root}/val/dog holds no images",
    ),
    "class folders too deep": ({"pets/cat": 2, "wild/cat": 2}, "class folder {root}/pets holds no images"),
    "train without val": ({"train/cat": 2}, "dataset.root={root} has no val"),
    "train and test with other classes": (
        {"train/cat": 2, "test/cat": 2, "test/dog": 2},
        "dataset.root={root}: class 'dog' is in test but not in train",
    ),
    "one image of train to cut": (
        {"train/cat": 2, "train/dog": 1, "test/cat": 2, "test/dog": 1},
        "class folder {root}/train/dog holds 1 image",
    ),
    "one class": ({"cat": 2}, "dataset.root={root} holds one class folder alone, cat"),
    "a class of val that train lacks": (
        {"train/cat": 1, "val/cat": 1, "val/dog": 1},
        "dataset.root={root}: class 'dog' is in val but not in train",
    ),
    "a class of train that val lacks": (
        {"train/cat": 1, "train/dog": 1, "val/cat": 1},
        "dataset.root={root}: class 'dog' is in train but not in val",
    ),
    "a class of test that val lacks": (
        {"val/cat": 1, "test/cat": 1, "test/dog": 1},
        "dataset.root={root}: class 'dog' is in test but not in val",
    ),
    "one image to split": ({"cat": 2, "dog": 1}, "class folder {root}/dog holds 1 image"),
}


@pytest.mark.parametrize(("counts", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_folders_are_refused(make_folder, counts, message):
    root = make_folder(counts)
    with pytest.raises(MameLabError, match="^" + re.escape(message.format(root=root))):
        ImageFolder(root=str(root)).splits()


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (None, "dataset.root is not set: "),
        ("/no/such/folder", "dataset.root=/no/such/folder does not exist: "),
        (__file__, f"dataset.root={__file__} is not a folder: "),
    ],
)
def test_a_bad_root_is_refused(root, message):
    with pytest.raises(MameLabError, match="^" + re.escape(message)):
        ImageFolder(root=root).splits()


@pytest.mark.parametrize("val_fraction", [0.0, 1.0, -0.1])
def test_a_bad_val_fraction_is_refused(val_fraction):
    with pytest.raises(MameLabError, match=f"^dataset.val_fraction={val_fraction} is out of range"):
        ImageFolder(val_fraction=val_fraction)


def write_half(path):
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN = {
    "truncated.jpg": write_half,
    "truncated.png": write_half,
    "text.jpg": lambda path: path.write_text("not an image"),
    "empty.png": lambda path: path.touch(),
}


@pytest.mark.parametrize(("name", "write"), BROKEN.items(), ids=BROKEN)
def test_a_broken_image_is_named(make_folder, name, write):
    path = make_folder({"val/cat": 0}) / "val/cat" / name
    write(path)
    images = ImageFolder(root=str(path.parents[2])).splits().val
    with pytest.raises(MameLabError, match=f"^image {re.escape(str(path))} cannot be read") as raised:
        images[0]
    assert "\n" not in str(raised.value)
