"""The image folder of the packaged photos: no pixel in two splits, and the same folder every time."""

import random
import subprocess
import sys
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mame_lab import MameLabError
from mame_lab.data.imagefolder import ImageFolder
from mame_lab.data.make_photos import HANDS, deal, make, square
from mame_lab.data.sample_photos import KINDS

COINS = (384, 303)


def test_the_folder_is_what_imagefolder_takes(tmp_path):
    make(tmp_path / "photos", crops=4, side=48)
    splits = ImageFolder(root=str(tmp_path / "photos")).splits()
    assert sorted(splits.classes) == sorted(Path(name).stem for _, name in KINDS["all"])
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [64, 32, 64]
    assert {image.size for image, _ in splits.train} == {(48, 48)}
    package, name = KINDS["all"][0]
    photo = np.asarray(Image.open(files(package) / name).convert("RGB"))
    windows = np.lib.stride_tricks.sliding_window_view(photo, (48, 48, 3))[:, :, 0]
    for path in (tmp_path / "photos").glob(f"*/{Path(name).stem}/*.png"):
        crop = np.asarray(Image.open(path))
        places = np.argwhere((windows[:, :, 0, 0] == crop[0, 0]).all(-1))
        assert any(np.array_equal(windows[row, column], crop) for row, column in places)


@pytest.mark.parametrize(("size", "side"), [(COINS, 64), ((1411, 1411), 64), ((640, 427), 100), (COINS, 90)])
def test_no_pixel_is_in_two_splits(size, side):
    cells = deal("photo", size, side, random.Random(0))
    owned = np.zeros(size, dtype=int)
    for boxes in cells.values():
        for left, top, right, bottom in boxes:
            owned[left:right, top:bottom] += 1
    assert (owned == 1).all()
    generator, seen = random.Random(0), {}
    for split, boxes in cells.items():
        seen[split] = np.zeros(size, dtype=bool)
        for box in boxes * 20:
            left, top, right, bottom = square(box, side, generator)
            assert (right - left, bottom - top) == (side, side)
            assert 0 <= left < right <= size[0]
            assert 0 <= top < bottom <= size[1]
            seen[split][left:right, top:bottom] = True
    assert all(part.any() for part in seen.values())
    assert not any((one & other).any() for one, other in combinations(seen.values(), 2))


def test_the_seed_alone_says_which_crops(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "all", KINDS["textures"])
    contents = []
    for number, seed in enumerate((0, 0, 1)):
        random.seed(number)
        make(tmp_path / str(number), crops=2, side=32, seed=seed)
        contents.append([path.read_bytes() for path in sorted((tmp_path / str(number)).rglob("*.png"))])
    assert contents[0] == contents[1]
    assert not set(contents[0]) & set(contents[2])
    assert len(set(contents[0])) == 3 * 5


def test_cells_are_dealt_two_to_one_to_two_from_everywhere():
    cells = deal("photo", (1411, 1411), 64, random.Random(0))
    assert list(cells) == list(HANDS)
    assert [len(cells[split]) for split in HANDS] == [116, 58, 115]
    assert cells != deal("photo", (1411, 1411), 64, random.Random(1))
    for boxes in cells.values():
        centre = np.mean(boxes, 0)
        assert (abs(centre - 705) < 150).all()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["taken"], "taken exists and is no empty folder: name a new one"),
        (["taken/file"], "taken/file exists and is no empty folder"),
        (["new", "--side=130"], "--side=130 is too large for chelsea.png, 451 x 300 pixels: give less"),
        (["new", "--crops=1"], "--crops=1 --side=64: give 2 crops or more"),
        (["new", "--side=0"], "--crops=40 --side=0: give 2 crops or more, of 1 pixel or more"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(tmp_path, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    Path("taken/file").touch()
    said = dict(argument[2:].split("=") for argument in arguments[1:])
    with pytest.raises(MameLabError, match=f"^{line}"):
        make(Path(arguments[0]), **{key: int(value) for key, value in said.items()})
    assert [path.name for path in Path().iterdir()] == ["taken"]


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "status", "line"), [("new", 0, "Written to new: "), ("file/new", 1, "error: file")])
def test_the_command_says_where_the_photos_are_or_why_not(tmp_path, folder, status, line):
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "mame_lab.data.make_photos", folder, "--crops=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status
    assert line in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
