"""Which part of a video a model sees: a clip, or several views.

A clip is x_TCHW: T frames at an even stride, C channels, H x W pixels; a video too short for one is looped. V views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mame_lab.data.splits import Video

Transform = Callable[[Tensor], Tensor]


def random_clip(video: Video, frames: int, stride: int, transform: Transform) -> Tensor:
    """A clip from anywhere in a video, transformed."""
    start = int(torch.randint(1 + _latest_start(video, frames, stride), ()))
    return transform(_clip(video, start, frames, stride))


def central_clip(video: Video, frames: int, stride: int, transform: Transform) -> Tensor:
    """The clip in the middle of a video, transformed."""
    return transform(next(_even_clips(video, 1, frames, stride)))


def views(video: Video, clips: int, frames: int, stride: int, transform: Transform) -> Tensor:
    """x_VTCHW: so many clips, spread evenly over a video, each in the crops that the transform makes of it."""
    return torch.cat([transform(x_TCHW) for x_TCHW in _even_clips(video, clips, frames, stride)])


def crops(x_TCHW: Tensor, size: tuple[int, int], count: int) -> Tensor:
    """x_VTCHW: crops of a height and width, spread evenly over the longer side, in the middle of the other."""
    gaps = [have - wanted for have, wanted in zip(x_TCHW.shape[-2:], size, strict=True)]
    longer = gaps.index(max(gaps))
    found = []
    for place in _even_places(count):
        top, left = (round(gap * (place if side == longer else 0.5)) for side, gap in enumerate(gaps))
        found.append(x_TCHW[..., top : top + size[0], left : left + size[1]])
    return torch.stack(found)


def _even_places(count: int) -> list[float]:
    """From 0 to 1; a single one is in the middle."""
    return [0.5] if count == 1 else torch.linspace(0, 1, count).tolist()


def _even_clips(video: Video, count: int, frames: int, stride: int) -> Iterator[Tensor]:
    latest = _latest_start(video, frames, stride)
    return (_clip(video, int(latest * place), frames, stride) for place in _even_places(count))


def _clip(video: Video, start: int, frames: int, stride: int) -> Tensor:
    return video.read([(start + stride * frame) % len(video) for frame in range(frames)])


def _latest_start(video: Video, frames: int, stride: int) -> int:
    return max(0, len(video) - 1 - stride * (frames - 1))
