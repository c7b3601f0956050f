"""Generated images side by side: a row for each prompt and seed, a column for each arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

from matplotlib.figure import Figure

from mame_lab.synthesis.generate import Picture

CELL = 3.0  # inches
CAPTION = 44  # characters in a line


def contact_sheet(pictures: Sequence[Picture], titles: Mapping[str, str]) -> Figure:
    """The pictures with the prompt and seed beside them.

    Args:
        pictures: of the same arms.
        titles: of the columns, by arm.
    """
    height, width = next(iter(pictures[0].images.values())).shape[1:]
    size = CELL * len(titles), CELL * height / width * len(pictures) + 0.35 * len(pictures) + 0.6
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(pictures), len(titles), squeeze=False)
    for row, picture in zip(axes, pictures, strict=True):
        for axis, arm in zip(row, titles, strict=True):
            axis.imshow(picture.images[arm].permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        caption = f"{picture.prompt}, seed {picture.seed}"
        row[0].set_xlabel(fill(caption, CAPTION), loc="left", fontsize=8)
    for axis, title in zip(axes[0], titles.values(), strict=True):
        axis.set_title(title, fontsize=9)
    return figure
