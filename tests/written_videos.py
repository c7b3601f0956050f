"""Videos that tests write: frames that grow brighter, with silence beside them if asked."""

from fractions import Fraction

import av
import numpy as np

FRAMES, RATE, STEP = 40, 20, 5


def write_video(path, times=range(FRAMES), offset=0, sound=0.0, **options):
    """Grey frames at these times, each `STEP` brighter than the one before it, in groups of 12 that point backwards.

    `sound`: seconds of silence beside them; `options`: of the container.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    faststart = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=faststart | options) as container:
        stream = add_pictures(container)
        silence = container.add_stream("aac", rate=48000) if sound else None
        write_pictures(container, stream, times, offset)
        if silence:
            write_silence(container, silence, sound)


def add_pictures(container):
    stream = container.add_stream("libx264", rate=RATE, options={"g": "12", "bf": "2", "qp": "1"})
    stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
    return stream


def write_pictures(container, stream, times, offset=0):
    for number, time in enumerate(times):
        picture = np.full((24, 32, 3), (offset + STEP * number) % 256, np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = time, Fraction(1, RATE)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_silence(container, stream, seconds):
    for start in range(0, int(48000 * seconds), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
