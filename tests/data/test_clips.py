"""Which frames and crops of a video a model sees."""

from dataclasses import dataclass

import pytest
import torch
from torchvision.transforms import v2

from mame_lab.data.clips import central_clip, crops, random_clip, views


@dataclass
class Numbered:
    """A video of `length` frames of one pixel that holds its number."""

    length: int

    def __len__(self):
        return self.length

    def read(self, indices):
        assert all(0 <= index < self.length for index in indices)
        return torch.tensor(list(indices)).view(-1, 1, 1, 1)


def numbers(x_THWC):
    return x_THWC.flatten().tolist()


@pytest.mark.parametrize(
    ("length", "frames", "stride", "expected"),
    [
        (9, 3, 2, [2, 4, 6]),
        (10, 3, 2, [2, 4, 6]),
        (5, 3, 2, [0, 2, 4]),
        (4, 3, 2, [0, 2, 0]),
        (1, 3, 1, [0, 0, 0]),
    ],
)
def test_the_central_clip_is_in_the_middle_and_loops_a_short_video(length, frames, stride, expected):
    assert numbers(central_clip(Numbered(length), frames, stride, lambda x: x)) == expected


def test_a_random_clip_starts_anywhere_and_follows_the_seed():
    torch.manual_seed(0)
    found = [numbers(random_clip(Numbered(10), 3, 2, lambda x: x)) for _ in range(200)]
    assert {tuple(clip) for clip in found} == {(start, start + 2, start + 4) for start in range(6)}
    torch.manual_seed(0)
    assert numbers(random_clip(Numbered(10), 3, 2, lambda x: x)) == found[0]
    assert numbers(random_clip(Numbered(4), 3, 2, lambda x: x)) == [0, 2, 0]


def test_views_are_clips_from_the_first_to_the_last_frame_each_in_all_crops():
    seen = views(Numbered(300), clips=5, frames=16, stride=4, transform=lambda x: torch.stack([x, -x]))
    assert seen.shape[:2] == (10, 16)
    assert [numbers(clip)[0] for clip in seen[::2]] == [0, 59, 119, 179, 239]
    assert numbers(seen[-2])[-1] == 299
    assert torch.equal(seen[::2], -seen[1::2])


@pytest.mark.parametrize(
    ("size", "expected"),
    [((4, 10), [(0, 0), (0, 3), (0, 6)]), ((10, 4), [(0, 0), (3, 0), (6, 0)]), ((6, 10), [(1, 0), (1, 3), (1, 6)])],
)
def test_crops_go_along_the_longer_side(size, expected):
    x_THW = torch.arange(size[0])[:, None] * 100 + torch.arange(size[1]).expand(2, 1, -1)
    x_TCHW = x_THW[:, None]
    cut = crops(x_TCHW, (4, 4), 3)
    assert cut.shape == (3, 2, 1, 4, 4)
    assert [divmod(int(view[0, 0, 0, 0]), 100) for view in cut] == expected
    assert torch.equal(crops(x_TCHW, (4, 4), 1)[0], v2.CenterCrop((4, 4))(x_TCHW))
