"""Files of images in all depths: what is black in them stays black, and white white."""

import struct

import numpy as np
import pytest
from PIL import Image

from mame_lab.data.folders import ImageFiles
from mame_lab.data.images import extensions, read_rgb
from mame_lab.errors import MameLabError

RAMP_HW = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
SHADES_HW = (RAMP_HW / 257).round().astype(np.uint8)


def big_endian():
    return Image.frombytes("I;16B", RAMP_HW.shape[::-1], RAMP_HW.astype(">u2").tobytes())


DEEP = {
    "16.png": lambda: Image.fromarray(RAMP_HW),
    "16.tif": lambda: Image.fromarray(RAMP_HW),
    "16.pgm": lambda: Image.fromarray(RAMP_HW),
    "16.jp2": lambda: Image.fromarray(RAMP_HW),
    "big_endian.tif": big_endian,
    "big_endian.png": big_endian,
    "unit.tif": lambda: Image.fromarray((RAMP_HW / 65535).astype(np.float32)),
    "unit.pfm": lambda: Image.fromarray((RAMP_HW / 65535).astype(np.float32)),
    "float_bytes.tif": lambda: Image.fromarray(SHADES_HW.astype(np.float32)),
    "between_bytes.tif": lambda: Image.fromarray((RAMP_HW / 257).astype(np.float32)),
    "int_bytes.tif": lambda: Image.fromarray(SHADES_HW.astype(np.int32)),
}


@pytest.mark.parametrize(("name", "make"), DEEP.items(), ids=DEEP)
def test_deep_grey_keeps_its_shades(tmp_path, name, make):
    make().save(tmp_path / name)
    image = read_rgb(tmp_path / name)
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image), np.repeat(SHADES_HW[..., None], 3, -1), atol=1)


def test_the_range_is_that_of_the_type(tmp_path):
    Image.fromarray(RAMP_HW // 16).save(tmp_path / "dark.png")
    assert np.asarray(read_rgb(tmp_path / "dark.png")).max() == 16


def test_tiff_of_12_bits(tmp_path):
    packed = "".join(f"{value:012b}" for value in (0, 2048, 4095, 1024))
    pixels = int(packed, 2).to_bytes(6, "big")
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 14) + pixels
    (tmp_path / "12.tif").write_bytes(head + struct.pack("<H", len(tags)) + entries + bytes(4))
    assert np.asarray(read_rgb(tmp_path / "12.tif"))[0, :, 0].tolist() == [0, 128, 255, 64]


@pytest.mark.parametrize(
    "values_HW",
    [
        RAMP_HW.astype(np.int32),
        SHADES_HW.astype(np.int32) - 9,
        (RAMP_HW / 65535).astype(np.float32) - 0.5,
        (RAMP_HW / 65535).astype(np.float32) * 255.5,
        (RAMP_HW / 65535).astype(np.float32) * 2.5,
        RAMP_HW.astype(np.float32),
        np.full((2, 2), np.nan, np.float32),
    ],
)
def test_grey_of_no_known_range_is_refused(tmp_path, values_HW):
    Image.fromarray(values_HW).save(path := tmp_path / "a.tif")
    with pytest.raises(
        MameLabError, match=f"^image {path} cannot be read .its values from .* have no known range: save"
    ):
        ImageFiles([(str(path), 0)], ["a"])[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_other_images_are_as_pillow_converts_them(tmp_path, mode):
    image = Image.linear_gradient("L").resize((16, 16)).convert(mode)
    image.save(path := tmp_path / "a.tif")
    assert read_rgb(path).tobytes() == Image.open(path).convert("RGB").tobytes()


def test_the_usual_names_come_first_and_programs_are_not_called():
    assert extensions()[:3] == (".jpg", ".jpeg", ".png")
    assert len(set(extensions())) == len(extensions())
    assert not {".pdf", ".eps", ".mpg", ".h5", ".wmf"} & set(extensions())
