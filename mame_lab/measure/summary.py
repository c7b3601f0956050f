"""How many tokens merging removes and what it saves, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mame_lab.models import depends_on_batch, family_of, shared_copy, unmerged_copy

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class BlockSummary:
    """One block. Tokens are those after it, prefix counted and padding not; GFLOPs are 1e9 multiply-adds a sample."""

    tokens: float
    fewest: int
    most: int
    gflops: float
    tokens_unmerged: int
    gflops_unmerged: float


@dataclass(frozen=True)
class ModelSummary:
    """Merged against unmerged; means over the images. Print it to see a table.

    Attributes:
        blocks: one entry a block.
        gflops, gflops_unmerged: of the whole model, embedding and head included.
        images: how many images the means are over.
    """

    blocks: list[BlockSummary]
    gflops: float
    gflops_unmerged: float
    images: int

    def __str__(self) -> str:
        lines = [f"{'block':>5}  {'tokens':>14}  {'unmerged':>8}  {'GFLOPs':>7}  {'unmerged':>8}  {'ratio':>6}"]
        for index, block in enumerate(self.blocks):
            spread = "" if block.fewest == block.most else f" {block.fewest}..{block.most}"
            lines.append(
                f"{index:>5}  {f'{block.tokens:.0f}{spread}':>14}  {block.tokens_unmerged:>8}  "
                f"{_row(block.gflops, block.gflops_unmerged)}"
            )
        lines.append(f"model  {'':>14}  {'':>8}  {_row(self.gflops, self.gflops_unmerged)}")
        lines.append(f"GFLOPs: 1e9 multiply-adds a sample; means over {self.images} images")
        return "\n".join(lines)


def summary(model: nn.Module, images: Tensor) -> ModelSummary:
    """Tokens and multiply-adds after each block, merged against unmerged.

    Args:
        model: a supported model, with or without merging; left as it is.
        images: (B, 3, H, W), preprocessed; with an adaptive method real ones, for the tokens depend on them.
    """
    import torch

    from mame_lab.measure import flops

    family = family_of(model)
    merged, unmerged = shared_copy(model).eval(), unmerged_copy(model).eval()
    with torch.no_grad():
        tokens, tokens_unmerged = family.trace(merged, images), family.trace(unmerged, images)
    costs, costs_unmerged = (flops.gflops(each, images, depends_on_batch(model)) for each in (merged, unmerged))
    blocks = [
        BlockSummary(
            tokens=float(tokens_B.float().mean()),
            fewest=int(tokens_B.min()),
            most=int(tokens_B.max()),
            gflops=costs[name],
            tokens_unmerged=int(tokens_unmerged_B[0]),
            gflops_unmerged=costs_unmerged[name],
        )
        for name, tokens_B, tokens_unmerged_B in zip(family.block_names(model), tokens, tokens_unmerged, strict=True)
    ]
    return ModelSummary(blocks, costs[""], costs_unmerged[""], len(images))


def _row(gflops: float, unmerged: float) -> str:
    return f"{gflops:>7.3g}  {unmerged:>8.3g}  {gflops / unmerged:>5.2f}x"
