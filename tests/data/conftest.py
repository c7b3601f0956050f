"""Small folders of images for the tests of `mame_lab.data`."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image

MakeFolder = Callable[[Mapping[str, int]], Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write `{"train/cat": 3}` as three 6x4 images train/cat/{0,1,2}.png and return their root."""

    def make(counts: Mapping[str, int]) -> Path:
        for class_path, count in counts.items():
            folder = tmp_path / class_path
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (6, 4), "teal").save(folder / f"{number}.png")
        return tmp_path

    return make
