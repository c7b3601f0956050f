"""What every dataset yields: labelled PIL images, or videos, in three splits, and how one split is cut from another.

N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class Video(Protocol):
    """Frames by number."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Tensor:
        """These RGB frames, in the order that is asked for: uint8 [T, C, H, W]."""
        ...


class LabelledImages(Protocol):
    """An indexed collection of (RGB image, label) pairs, or of (video, label) pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image | Video, int]: ...


@dataclass(frozen=True)
class Splits:
    """The images of a dataset; label k is named `classes[k]`.

    `train` is None where a folder holds only validation images. `test` is `val` itself where there is no third split.
    `conditions` is what a result on the test images depends on beside them, by name.
    """

    train: LabelledImages | None
    val: LabelledImages
    test: LabelledImages
    classes: list[str]
    conditions: dict[str, Any] = field(default_factory=dict)


def stratified_split(labels: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Hold out `fraction` of every class, rounded; each side keeps at least one image of every class that has two.

    Returns:
        The sorted indices of the rest and of the held-out images.
    """
    labels_N = np.asarray(labels)
    generator = np.random.default_rng(seed)
    is_held_N = np.zeros(len(labels_N), dtype=bool)
    for label in np.unique(labels_N):
        members = generator.permutation(np.flatnonzero(labels_N == label))
        held_count = min(max(1, round(fraction * len(members))), len(members) - 1)
        is_held_N[members[:held_count]] = True
    return np.flatnonzero(~is_held_N).tolist(), np.flatnonzero(is_held_N).tolist()
