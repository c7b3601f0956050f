"""Videos on disk, decoded by PyAV: of each only what a clip needs, from the key frame before it on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mame_lab.data.files import whole_file
from mame_lab.data.progress import track
from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SLACK = 0.5  # seconds that the last frame may stand for: containers round the length of a video
BACK = 10  # seconds from one key frame to the next, at most as a rule
REORDERED = 16  # frames that may be stored behind one that is shown later, at most
RULES = 2  # of what is broken; a new number has all videos checked again


@dataclass(frozen=True)
class VideoFile:
    """The frames of a video, numbered by its frame rate from 0.

    Raises:
        MameLabError: (in use) it is missing, broken or ends early; the message names it.
    """

    path: str

    def __len__(self) -> int:
        return self._length

    def read(self, indices: Sequence[int]) -> Tensor:
        """These RGB frames: uint8 [T, C, H, W]. The next frame stands for one that the video leaves out."""
        import numpy as np
        import torch

        wanted = sorted(set(indices))
        with self._named():
            pictures = dict(zip(wanted, _pictures(self.path, wanted), strict=True))
            x_THWC = np.stack([pictures[index] for index in indices])
        return torch.from_numpy(x_THWC).permute(0, 3, 1, 2)

    @cached_property
    def _length(self) -> int:
        with self._named():
            return _length(self.path)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What goes wrong in it names the video."""
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise MameLabError("videos need PyAV: pip install 'mame_lab[video]'") from error
        try:
            yield
        except Exception as error:  # PyAV meets broken files with FFmpegError, IndexError, TypeError, ...
            raise MameLabError(
                f"video {self.path} cannot be read ({_reason(error)}): replace or delete it, or set "
                f"dataset.on_broken=skip"
            ) from error


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    """The container, and of its streams of pictures the main one."""
    import av
    from av.stream import Disposition

    with av.open(path) as container:
        stream = container.streams.best("video")
        if stream is None or Disposition.attached_pic in stream.disposition:
            raise ValueError("it holds no pictures, or a cover alone")
        yield container, stream


def _seek(container: Any, stream: Any, seconds: Fraction) -> None:
    """To a key frame at or before this time, as far as the container can be searched."""
    from av.error import FFmpegError

    with suppress(FFmpegError):
        container.seek(int(seconds / stream.time_base), stream=stream)


def _rate(stream: Any) -> Fraction:
    """Frames in a second."""
    return stream.average_rate or stream.guessed_rate


def _number(stream: Any, time: int | None) -> int:
    """Of the frame at this time of the stream's clock."""
    if time is None:
        raise ValueError("it holds pictures that have no time")
    return round((time - (stream.start_time or 0)) * stream.time_base * _rate(stream))


def _length(path: str) -> int:
    """Up to the last frame: by the count of the header, or else by the packets near the end, of which none is decoded.

    Raises:
        ValueError: the packets end before the time that the header tells.
    """
    for is_near in (True, False):  # the end; from the start on, where too little is found there
        with _opened(path) as (container, stream):
            if stream.frames:
                shown = round((stream.duration or 0) * stream.time_base * _rate(stream))
                return min(stream.frames, shown or stream.frames)  # An edit list leaves out some that are counted.
            length = Fraction(container.duration or 0, 10**6)
            if is_near:
                _seek(container, stream, length - BACK)
            times, end = [], Fraction(0)
            for packet in container.demux():
                if packet.pts is not None:
                    end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                    if packet.stream is stream:
                        times.append(_number(stream, packet.pts))
        if len(times) > REORDERED:
            break
    if not times:
        raise ValueError("it holds no pictures that have a time")
    if end < length - Fraction(SLACK):
        raise ValueError(f"it ends after {float(end):.1f} of {float(length):.1f} s")
    return 1 + max(times)


def _pictures(path: str, wanted: list[int]) -> Iterator[np.ndarray]:
    """The frames of these numbers, which rise, each as RGB."""
    for back in (0, BACK, None):  # None: from the start on, where the container cannot be searched
        with _opened(path) as (container, stream):
            if back is not None:
                first = (stream.start_time or 0) * stream.time_base
                _seek(container, stream, first + wanted[0] / _rate(stream) - back)
            numbered = ((_number(stream, frame.pts), frame) for frame in container.decode(stream))
            opening = next(numbered, None)
            if opening and (opening[0] <= wanted[0] or back is None):
                yield from _follow(chain([opening], numbered), stream, wanted)
                return
    raise ValueError(f"frame {wanted[0]} cannot be found")


def _follow(numbered: Iterator[tuple[int, Any]], stream: Any, wanted: list[int]) -> Iterator[np.ndarray]:
    """From numbered frames those that are wanted, each as RGB of shape (H, W, 3)."""
    number, frame = next(numbered)
    for index in wanted:
        while number < index and (following := next(numbered, None)):
            number, frame = following
        lasting = max(SLACK, (frame.duration or 0) * stream.time_base)
        if number < index - lasting * _rate(stream):
            raise ValueError(f"it ends with frame {number}, before frame {index}")
        yield frame.to_ndarray(format="rgb24")


def find_faults(paths: Sequence[str], found: Path) -> dict[str, str]:
    """What is wrong with those of the videos that are broken.

    Every video is decoded once; what came out is kept in a file, `found`, as long as the videos do not change.
    """
    from mame_lab.data.datamodule import usable_cpus

    known = _read(found)
    stamps = {path: _stamp(path) for path in paths}
    unknown = [path for path, stamp in stamps.items() if known.get(path, [None])[0] != stamp]
    pool = ThreadPoolExecutor(usable_cpus())
    try:
        faults = zip(unknown, pool.map(_fault, unknown), strict=True)
        for path, fault in track(faults, f"checking the videos of {found.parent}", len(unknown)):
            known[path] = [stamps[path], fault]
    finally:
        pool.shutdown(cancel_futures=True)
        if unknown:
            _write(found, known)
    return {path: known[path][1] for path in paths if known[path][1]}


def _fault(path: str) -> str | None:
    try:
        video = VideoFile(path)
        video.read([0, len(video) - 1])
    except MameLabError as error:
        return _reason(error.__cause__)
    return None


def _reason(error: BaseException | None) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def _stamp(path: str) -> str:
    try:
        stat = Path(path).stat()
    except OSError as error:
        return str(error.strerror)
    return f"{stat.st_size} {stat.st_mtime_ns} {RULES}"


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write(path: Path, known: dict[str, list[Any]]) -> None:
    with suppress(OSError), whole_file(path, shared=True) as part:
        part.write_text(json.dumps(known), encoding="utf-8")
