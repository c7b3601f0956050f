"""Videos on disk, decoded by PyAV: of each only what a clip needs, from the key frame before it on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SLACK = 0.5  # seconds that the last frame may stand for: containers round the length of a video


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
        with self._opened() as container:
            pictures = dict(zip(wanted, _pictures(container, wanted), strict=True))
            x_THWC = np.stack([pictures[index] for index in indices])
        return torch.from_numpy(x_THWC).permute(0, 3, 1, 2)

    @cached_property
    def _length(self) -> int:
        with self._opened() as container:
            stream: Any = container.streams.video[0]
            return stream.frames or round(container.duration / 1e6 * stream.average_rate)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            import av
        except ImportError as error:
            raise MameLabError("videos need PyAV: pip install 'mame_lab[video]'") from error
        try:
            with av.open(self.path) as container:
                yield container
        except Exception as error:  # PyAV meets broken files with FFmpegError, IndexError, TypeError, ...
            raise MameLabError(
                f"video {self.path} cannot be read ({_reason(error)}): replace or delete it, or set dataset.broken=skip"
            ) from error


def _pictures(container: Any, wanted: list[int]) -> Iterator[np.ndarray]:
    """The frames of these numbers, which rise, each as RGB of shape (H, W, 3)."""
    stream = container.streams.video[0]
    first, slack = stream.start_time or 0, SLACK * stream.average_rate
    ticks = 1 / (stream.time_base * stream.average_rate)  # of the stream's clock, from a frame to the next
    container.seek(first + int(wanted[0] * ticks), stream=stream)
    numbered = ((round((frame.pts - first) / ticks), frame) for frame in container.decode(stream))
    opening = next(numbered, None)
    if opening is None or opening[0] > wanted[0]:
        raise ValueError(f"frame {wanted[0]} cannot be found")
    number, frame = opening
    for index in wanted:
        while number < index and (following := next(numbered, None)):
            number, frame = following
        if number < index - slack:
            raise ValueError(f"it ends with frame {number}, before frame {index}")
        yield frame.to_ndarray(format="rgb24")


def find_faults(paths: Sequence[str], found: Path) -> dict[str, str]:
    """What is wrong with those of the videos that are broken.

    Every video is decoded once; what came out is kept in a file, `found`, as long as the videos do not change.
    """
    from rich.console import Console
    from rich.progress import track

    from mame_lab.data.datamodule import usable_cpus

    known = _read(found)
    stamps = {path: _stamp(path) for path in paths}
    unknown = [path for path, stamp in stamps.items() if known.get(path, [None])[0] != stamp]
    console = Console()
    pool = ThreadPoolExecutor(usable_cpus())
    try:
        faults = zip(unknown, pool.map(_fault, unknown), strict=True)
        bar = {"total": len(unknown), "console": console, "transient": True, "disable": not console.is_terminal}
        for path, fault in track(faults, f"checking the videos of {found.parent}", **bar):
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
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write(path: Path, known: dict[str, list[Any]]) -> None:
    partial = path.with_suffix(f".{uuid4().hex}")  # Other processes may be writing the same.
    try:
        partial.write_text(json.dumps(known), encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
