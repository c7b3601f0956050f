"""The 1797 real handwritten digits of 8x8 pixels that scikit-learn ships: no download.

N images, D = H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from mame_lab.data.dataset import ImageDataset
from mame_lab.data.splits import Splits, stratified_split


@dataclass
class Digits(ImageDataset):
    """Optical digits (UCI, 1998) as RGB images: 1259 train, 179 val, 359 test, the same ones every time."""

    name: str = "digits"
    batch_size: int = 16
    num_workers: int | None = 0
    augment: str = "crop"
    min_crop_area: float = 0.75

    def splits(self) -> Splits:
        from PIL import Image
        from sklearn.datasets import load_digits

        pixels_ND, labels_N = load_digits(return_X_y=True)
        pixels_NHW = (pixels_ND * (255 / 16)).round().astype("uint8").reshape(-1, 8, 8)
        labels = labels_N.tolist()
        digits = [(Image.fromarray(x_HW).convert("RGB"), y) for x_HW, y in zip(pixels_NHW, labels, strict=True)]

        seen, test = stratified_split(labels, fraction=1 / 5, seed=0)
        train, val = stratified_split([labels[i] for i in seen], fraction=1 / 8, seed=0)
        return Splits(
            train=[digits[seen[i]] for i in train],
            val=[digits[seen[i]] for i in val],
            test=[digits[i] for i in test],
            classes=[str(digit) for digit in range(10)],
        )
