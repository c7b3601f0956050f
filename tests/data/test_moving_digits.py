"""Digits that move: the motion tells the class, and a single frame tells nothing."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from PIL import Image

from mame_lab.data import Digits, MovingDigits
from mame_lab.data.moving_digits import CANVAS, DIRECTIONS, LAP, MovingDigit
from mame_lab.errors import MameLabError

LABELS = range(len(DIRECTIONS))
UP, LEFT = {"north": 1, "south": -1}, {"west": 1, "east": -1}


def first(splits, count=16):
    return [video for video, _ in splits[:count]]


@pytest.mark.parametrize("number", [0, 1, LAP // 2, LAP - 1])
def test_a_single_frame_is_as_likely_in_every_direction(number):
    image = MovingDigits(digits=1).splits().train[0][0].image
    starts = [(row, column) for row in range(0, CANVAS, 2) for column in range(0, CANVAS, 2)]
    seen = [
        Counter(MovingDigit(image, start, direction).read([number]).numpy().tobytes() for start in starts)
        for direction in DIRECTIONS.values()
    ]
    assert len(seen[0]) == len(starts)
    assert all(each == seen[0] for each in seen)


def test_every_digit_moves_in_all_directions_from_one_start():
    splits = MovingDigits(digits=5).splits()
    assert splits.classes == list(DIRECTIONS)
    for videos in (splits.train, splits.val, splits.test):
        assert [label for _, label in videos] == [*LABELS] * 5
        frames = [video.read([0]) for video, _ in videos]
        assert all(torch.equal(frame, frames[number // 8 * 8]) for number, frame in enumerate(frames))
        assert len({frame.numpy().tobytes() for frame in frames}) == 5


@pytest.mark.parametrize("name", DIRECTIONS)
def test_it_moves_where_its_class_says(name):
    dot = Image.new("RGB", (1, 1), "white").resize((16, 16))
    start = (8, 8)
    before, after = (
        frame[0].nonzero().float().mean(0) for frame in MovingDigit(dot, start, DIRECTIONS[name]).read([0, 1])
    )
    words = name.split("-")
    assert torch.equal(
        torch.sign(before - after),
        torch.tensor([float(sum(axis.get(word, 0) for word in words)) for axis in (UP, LEFT)]),
    )


def test_a_lap_ends_where_it_began_and_the_edges_meet():
    for video, _ in MovingDigits(digits=1).splits().test:
        frames = video.read(range(2 * LAP))
        assert (frames.shape, frames.dtype) == ((2 * LAP, 3, CANVAS, CANVAS), torch.uint8)
        assert len(video) == LAP
        assert torch.equal(frames[:LAP], frames[LAP:])
        assert len({int(frame.sum()) for frame in frames}) == 1
        for earlier, later in pairwise(frames):
            assert torch.equal(earlier.roll(video.direction, (1, 2)), later)


def test_the_digits_are_those_of_the_same_split_and_stay_the_same():
    moving, still = MovingDigits(digits=1000).splits(), Digits().splits()
    for split in ("train", "val", "test"):
        images = [image.resize((16, 16)).tobytes() for image, _ in getattr(still, split)][:1000]
        assert [video.image.tobytes() for video, _ in getattr(moving, split)[::8]] == images
    again = MovingDigits(digits=7).splits()
    starts = [[video.start for video, _ in videos[::8]] for videos in (again.train, again.val, again.test)]
    assert starts[2] == [video.start for video, _ in moving.test[:56:8]]
    assert len({str(each) for each in starts}) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": "crop_flip"}, "dataset.augment=crop_flip turns the directions"),
        ({"digits": 0}, "dataset.digits=0 is not positive"),
        ({"frame_stride": 0}, "dataset.frame_stride=0 is not positive"),
        ({"clips": 0}, "dataset.clips=0 is not positive"),
        ({"crops": -1}, "dataset.crops=-1 is not positive"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(MameLabError, match=f"^{message}"):
        MovingDigits(**settings)
