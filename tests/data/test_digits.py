"""The bundled digits: all of them, once, in stratified splits that stay the same."""

from collections import Counter

import numpy as np
from sklearn.datasets import load_digits

from mame_lab.data import Digits


def test_the_splits_part_all_digits():
    splits = Digits().splits()
    parts = [splits.train, splits.val, splits.test]
    assert [len(part) for part in parts] == [1259, 179, 359]

    found = Counter((image.tobytes(), label) for part in parts for image, label in part)
    pixels = (load_digits().images * 255 / 16).round().astype(np.uint8)
    expected = np.repeat(pixels[..., None], 3, axis=-1)
    assert found == Counter((x.tobytes(), int(y)) for x, y in zip(expected, load_digits().target, strict=True))

    for part in parts:
        shares = np.bincount([label for _, label in part], minlength=10) / len(part)
        assert abs(shares - 0.1).max() < 0.02


def test_the_splits_stay_the_same():
    first, second = Digits().splits(), Digits().splits()
    assert [x.tobytes() for x, _ in first.val] == [x.tobytes() for x, _ in second.val]
    assert first.classes == [str(k) for k in range(10)]
    image, label = first.train[0]
    assert (image.size, image.mode, type(label)) == ((8, 8), "RGB", int)
