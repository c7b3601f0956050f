"""The pictures of an evaluation: which patches became which token in some test images, and tokens by block.

D blocks, M images.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import torch
from lightning.pytorch import Trainer
from torch import nn

from mame_lab.data.datamodule import ImageData
from mame_lab.data.progress import track
from mame_lab.errors import MameLabError
from mame_lab.measure.figures import merging_figure, owners, tokens_figure, unnormalise
from mame_lab.measure.precision import converted, prepared
from mame_lab.merging import Method
from mame_lab.models import family_of, merges, unmerged_copy

TRACED = 256  # test images whose tokens are counted, at most
TITLE = 70  # characters in a line of a title


def check(model: nn.Module, count: int, method: Method) -> None:
    """Raise MameLabError where pictures are asked for and nothing merges, or no image is there to draw."""
    if count and not merges(model):
        raise MameLabError(
            f"visualize={count} shows what merging does, and mame={method} does not merge: choose a mame that merges, "
            f"or visualize=0"
        )
    if count and family_of(model).data_config(model).get("frames"):
        raise MameLabError(f"visualize={count} draws images, and this model takes videos: give visualize=0")


def draw(model: nn.Module, data: ImageData, trainer: Trainer, count: int, title: str, folder: Path) -> dict[str, Path]:
    """Write merging.png, of `count` test images, and tokens.png, over as many as `TRACED`.

    Images are spread over the test set, and run in batches of `dataset.batch_size`.

    Returns:
        The two files by name, for `runs.loggers.log_pictures`.
    """
    family, model = family_of(model), prepared(model, trainer).eval()
    shown, traced = (data.sample(min(most, len(data.splits.test)))[0] for most in (count, TRACED))
    shown_by_batch, traced_by_batch = (images.split(data.dataset.batch_size) for images in (shown, traced))
    with torch.inference_mode(), trainer.precision_plugin.forward_context():
        plans = [family.plans(model, converted(batch, trainer)) for batch in shown_by_batch]
        counts = [
            torch.stack(family.trace(model, converted(batch, trainer))).cpu()
            for batch in track(traced_by_batch, "counting tokens")
        ]
    owners_by_block = [torch.cat(batches) for batches in zip(*map(owners, plans), strict=True)]
    unmerged = int(family.trace(unmerged_copy(model), shown[:1])[0])
    normalisation = family.data_config(model)
    rows, columns = family.grid(model, shown)
    pixels = unnormalise(shown, normalisation["mean"], normalisation["std"])
    title = fill(title, TITLE)
    figures = {
        "merging": merging_figure(pixels, owners_by_block, (rows, columns), title),
        "tokens": tokens_figure(torch.cat(counts, 1), unmerged, title),
    }
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        figure.savefig(paths[name])
    return paths
