"""Pictures of merging: which patches became which token, and how many tokens there are after each block.

B images, N patches, K tokens of a sequence, prefix included, D blocks, M images of a dataset, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import hsv_to_rgb
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mame_lab.merging.plan import MergePlan

DROPPED = -1
PANEL = 416  # pixels of a map's longer side, about
INCHES = 2.6  # the same in a figure
STATES = 5  # blocks that a figure shows, at most
TINT = 0.3  # share of a token's own colour in its fill
GOLDEN = 0.618034  # neighbours in a sequence of hues that advances by this part of the circle are far apart


def unnormalise(x_B3HW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The pixels between 0 and 1, on the CPU, of images that were normalised by `mean` and `std` of each channel."""
    mean_311, std_311 = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (mean, std))
    return (x_B3HW.cpu() * std_311 + mean_311).clamp(0, 1)


def owners(plans: Sequence[MergePlan | None]) -> list[Tensor]:
    """Which token holds most of each patch, after every block.

    Args:
        plans: of one forward pass, one a block; None where the block did not merge.

    Returns:
        For each block the index (B, N), on the CPU, among all tokens after it, prefix counted; `DROPPED` where no
        token holds any of the patch. A patch that is spread belongs to its largest share, ties to the lower index.

    Raises:
        MameLabError: no block merged.
    """
    first = next((plan for plan in plans if plan is not None), None)
    if first is None:
        raise MameLabError("no block merges, so there is no merging to show: choose a mame that merges")
    batch, tokens = first.row_BN.shape
    identity_KK = torch.eye(tokens, device=first.row_BN.device)
    spread_BKN = identity_KK[:, first.prefix :].expand(batch, -1, -1)
    owners_by_block = []
    for plan in plans:
        if plan is not None:
            spread_BKN = plan.matrix() @ spread_BKN
        share_BN, owner_BN = spread_BKN.max(1)
        owners_by_block.append(owner_BN.masked_fill(share_BN == 0, DROPPED).cpu())
    return owners_by_block


def token_map(pixels_3HW: Tensor, owners_N: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """The image as its tokens: one that holds several patches is flat, within a white line, wherever its patches lie.

    Its colour is the mean of its patches, tinted to tell it from others. A patch that is a token of its own shows its
    pixels; a dropped one is dark and striped.

    Args:
        pixels_3HW: the image, between 0 and 1.
        owners_N: the token of each patch, row by row, as `owners` gives it.
        grid: rows and columns of patches.

    Returns:
        RGB between 0 and 1, of shape (rows * cell, columns * cell, 3), where every patch is cell x cell pixels.
    """
    cell = max(8, PANEL // max(grid))
    size = (grid[0] * cell, grid[1] * cell)

    def enlarged(value_N: Tensor) -> Tensor:
        return value_N.unflatten(-1, grid).repeat_interleave(cell, -2).repeat_interleave(cell, -1)

    image_3HW = F.interpolate(pixels_3HW[None], size, mode="bilinear", antialias=True)[0]
    patch_3N = F.avg_pool2d(image_3HW, cell).flatten(1)
    owner_HW, merged_HW = enlarged(owners_N), enlarged((owners_N[:, None] == owners_N).sum(0) > 1)
    image_3HW = torch.where(merged_HW, enlarged(_fill(patch_3N, owners_N)), image_3HW)
    image_3HW = image_3HW.masked_fill(merged_HW & _outline(owner_HW), 1)
    stripes_HW = (torch.arange(size[0])[:, None] + torch.arange(size[1])) // 4 % 2
    return torch.where(owner_HW == DROPPED, 0.1 + 0.15 * stripes_HW, image_3HW).permute(1, 2, 0).numpy()


def merging_figure(pixels_B3HW: Tensor, owners_by_block: Sequence[Tensor], grid: tuple[int, int], title: str) -> Figure:
    """A row for each image: the image itself, then its tokens after the blocks that merged, the last one among them.

    Where more than `STATES` blocks merged, an even choice of them is shown. The numbers of tokens leave out the prefix.

    Args:
        pixels_B3HW: the images, between 0 and 1.
        owners_by_block: what `owners` gave for these images, (B, N) for each block.
        grid: rows and columns of patches.
        title: of the figure.
    """
    from matplotlib.figure import Figure

    shown = _evenly(_merging_blocks(owners_by_block), STATES)
    width, height = (INCHES * side / max(grid) for side in (grid[1], grid[0]))
    size = ((1 + len(shown)) * width, len(pixels_B3HW) * (height + 0.3) + 0.3)
    figure = Figure(size, dpi=PANEL / INCHES, layout="compressed")
    axes = figure.subplots(len(pixels_B3HW), 1 + len(shown), squeeze=False)
    for image, pixels_3HW in enumerate(pixels_B3HW):
        _panel(axes[image, 0], pixels_3HW.permute(1, 2, 0).numpy(), f"{grid[0] * grid[1]} patches")
        for axis, block in zip(axes[image, 1:], shown, strict=True):
            owners_N = owners_by_block[block][image]
            picture = token_map(pixels_3HW, owners_N, grid)
            _panel(axis, picture, f"block {block}: {_tokens(owners_N)} tokens")
    figure.suptitle(title, fontsize=10)
    return figure


def tokens_figure(counts_DM: Tensor, unmerged: int, title: str) -> Figure:
    """Tokens after each block over the images of a dataset: the median and the central 50 % and 90 % of the images.

    Args:
        counts_DM: tokens of each image after each block.
        unmerged: tokens that the model has without merging, counted alike.
        title: of the figure.
    """
    from matplotlib.figure import Figure

    blocks = range(len(counts_DM))
    shares_5 = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    least, low, median, high, most = counts_DM.cpu().float().quantile(shares_5, dim=1).numpy()
    figure = Figure((max(6.0, 0.4 * len(blocks)), 4), dpi=150, layout="constrained")
    axis = figure.subplots()
    axis.axhline(unmerged, color="black", linestyle="--", linewidth=1, label=f"unmerged: {unmerged}")
    axis.fill_between(blocks, least, most, color="tab:blue", alpha=0.2, linewidth=0, label="5 to 95 % of the images")
    axis.fill_between(blocks, low, high, color="tab:blue", alpha=0.4, linewidth=0, label="25 to 75 %")
    axis.plot(blocks, median, color="tab:blue", marker="o", label="median")
    axis.set(xlabel="block", ylabel="tokens after the block", xticks=blocks)
    axis.set_title(title, fontsize=10)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return figure


def _fill(patch_3N: Tensor, owners_N: Tensor) -> Tensor:
    """The colour of each patch's token: the mean of the token's patches, tinted by the place of the first of them."""
    same_NN = (owners_N[:, None] == owners_N).float()
    mean_3N = patch_3N @ same_NN / same_NN.sum(0)
    first_N = same_NN.argmax(0)
    tint_N3 = torch.tensor([hsv_to_rgb(first * GOLDEN % 1, 0.65, 0.9) for first in first_N.tolist()])
    return mean_3N.lerp(tint_N3.T, TINT)


def _outline(owner_HW: Tensor) -> Tensor:
    """True for the pixels next to one of another owner."""
    both_2HW = torch.stack([owner_HW, -owner_HW]).float()
    return (F.max_pool2d(both_2HW, 3, stride=1, padding=1) != both_2HW).any(0)


def _merging_blocks(owners_by_block: Sequence[Tensor]) -> list[int]:
    """The blocks after which some image has fewer tokens than before."""
    tokens_DB = torch.tensor([[_tokens(owners_N) for owners_N in owners_BN] for owners_BN in owners_by_block])
    before_DB = torch.cat([torch.full_like(tokens_DB[:1], owners_by_block[0].shape[1]), tokens_DB[:-1]])
    return (tokens_DB < before_DB).any(1).nonzero()[:, 0].tolist()


def _tokens(owners_N: Tensor) -> int:
    return len(owners_N[owners_N != DROPPED].unique())


def _evenly(items: list[int], count: int) -> list[int]:
    places = torch.linspace(0, len(items) - 1, min(count, len(items))).round().long()
    return [items[place] for place in places.tolist()]


def _panel(axis: Axes, picture: np.ndarray, caption: str) -> None:
    axis.imshow(picture)
    axis.set_title(caption, fontsize=10)
    axis.set_axis_off()
