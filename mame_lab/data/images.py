"""Files of images: what they are called, and how one becomes RGB.

x_HW: pixels of a grey image.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

USUAL = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")
UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # by Pillow alone, which knows them by sight
DARK = 16  # the brightest byte of a picture of fractions is above this one; below it they may be shares that overshoot
BITS_PER_SAMPLE = 258  # a tag of TIFF


@cache
def extensions() -> tuple[str, ...]:
    """What the names of images end with: all that Pillow reads, the usual ones first."""
    from PIL import Image

    formats = Image.registered_extensions()
    readable = {*Image.OPEN, "MPO"} - UNREADABLE  # MPO is read as JPEG.
    return USUAL + tuple(sorted(name for name, form in formats.items() if form in readable and name not in USUAL))


def read_rgb(file: str | Path | IO[bytes]) -> Image:
    """An image in 8 bits a channel. Transparency is left out, and deeper grey is scaled by the range of its type.

    Raises:
        ValueError: that range is not known.
        Exception: whatever Pillow meets a broken file with.
    """
    from PIL import Image

    with Image.open(file) as image:
        return (_shallow(image) if image.mode[0] in "IF" else image).convert("RGB")


def _shallow(image: Image) -> Image:
    import numpy as np
    from PIL import Image as Pillow

    x_HW = np.asarray(image)
    return Pillow.fromarray((x_HW * (255 / _white(image, x_HW))).round().astype(np.uint8))


def _white(image: Image, x_HW: np.ndarray) -> int:
    """The value of white: 65535 in 16 bits, 255 in 32 bits, where fractions that are all from 0 to 1 are shares of it.

    Raises:
        ValueError: values in 32 bits are below 0, above 255, or fractions up to little more than 1.
    """
    if image.mode.startswith("I;") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))  # 12 in the TIFF files of some cameras
        return 2 ** bits[0] - 1
    low, high = x_HW.min(), x_HW.max()
    if image.mode == "F" and 0 <= low <= high <= 1:
        return 1
    if 0 <= low <= high <= 255 and (high > DARK or not (x_HW % 1).any()):
        return 255
    raise ValueError(f"its values from {low} to {high} have no known range: save it with 8 or 16 bits")
