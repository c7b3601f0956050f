"""What a batch does to its samples where they merge together (`mame.batching=union`): cost and outputs by batch size.

B batch, M images, K outputs.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from rich import print
from rich.table import Table
from torch import Tensor, nn

from mame_lab.data.datamodule import ImageData
from mame_lab.data.files import write_csv
from mame_lab.data.progress import track
from mame_lab.measure.cost import gflops
from mame_lab.measure.precision import converted, prepared
from mame_lab.measure.table import results_table
from mame_lab.models import family_of, unmerged_copy

BATCH_SIZES = (1, 4, 16, 64)


class UnionRow(NamedTuple):
    """The same images in batches of one size; means over the images.

    Attributes:
        batch: images in a batch.
        tokens: tokens after the last block, prefix counted.
        cost: share of the unmerged model's multiply-adds.
        change: distance of the outputs (logits, or features) from those of batch 1, over their norm.
    """

    batch: int
    tokens: float
    cost: float
    change: float


def show(model: nn.Module, data: ImageData, trainer: Trainer, most: int, folder: Path) -> None:
    """Measure up to a batch of `most` test images; print the table, write union.csv and union.png."""
    model = prepared(model, trainer).eval()
    images = converted(data.sample(min(most, len(data.splits.test)))[0], trainer)
    with trainer.precision_plugin.forward_context():
        found = rows(model, images)
    write_csv(folder / "union.csv", UnionRow._fields, found)
    figure(found).savefig(folder / "union.png", dpi=150)
    print(table(found))


@torch.no_grad()
def rows(model: nn.Module, images: Tensor) -> list[UnionRow]:
    """A row for each of `BATCH_SIZES` that the images (B, 3, H, W) fill; the largest says how many of them count."""
    sizes = [size for size in BATCH_SIZES if size <= len(images)]
    images, trace = images[: sizes[-1]], family_of(model).trace
    unmerged_gflops = gflops(unmerged_copy(model), images)
    alone_MK, found = None, []
    for size in sizes:
        outputs, tokens, costs = [], [], []
        for batch in track(images.split(size), f"batches of {size}"):
            outputs.append(model(batch).float())
            tokens.append(trace(model, batch)[-1].float())
            costs.append(gflops(model, batch) / unmerged_gflops)
        outputs_MK = torch.cat(outputs)
        alone_MK = outputs_MK if alone_MK is None else alone_MK
        change_M = (outputs_MK - alone_MK).norm(dim=1) / alone_MK.norm(dim=1)
        found.append(UnionRow(size, float(torch.cat(tokens).mean()), mean(costs), float(change_M.mean())))
    return found


def table(found: list[UnionRow]) -> Table:
    """A row for each batch size."""
    caption = "A sample merges as far as all of its batch allow. Change: of the outputs, against batch 1."
    headers = "batch", "tokens", "share of GFLOPs", "change"
    rows = results_table("What the batch does with mame.batching=union", headers, caption)
    for row in found:
        rows.add_row(str(row.batch), f"{row.tokens:.1f}", f"{row.cost:.3f}", f"{100 * row.change:.2g} %")
    return rows


def figure(found: list[UnionRow]) -> Figure:
    """The share of multiply-adds and the change of the outputs, one above the other, over the batch size."""
    plot = Figure(figsize=(6, 5), layout="constrained")
    above, below = plot.subplots(2, sharex=True)
    sizes = [row.batch for row in found]
    above.plot(sizes, [row.cost for row in found], marker="o")
    above.set(ylabel="share of the multiply-adds", ylim=(0, 1))
    below.plot(sizes, [row.change for row in found], marker="o", color="tab:red")
    below.set(ylabel="change of the outputs\nagainst batch 1", xlabel="batch size", ylim=(0, None))
    below.set_xscale("log", base=2)
    below.set_xticks(sizes, [str(size) for size in sizes])
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    plot.suptitle("mame.batching=union: the same images in batches of different size")
    return plot
