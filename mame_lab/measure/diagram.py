"""The picture of one merge step: eight patches of a photograph, merged by the library itself and restored.

    python -m mame_lab.measure.diagram FOLDER        writes merge_step_light.png and merge_step_dark.png

B batch (1), N tokens (8), K tokens after the step, C channels, T targets, S sources, H x W pixels.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Curve
from torch import Tensor

from mame_lab.data.sample_photos import SKLEARN, read_photo
from mame_lab.merging import MaMe
from mame_lab.merging.plan import MergePlan
from mame_lab.merging.state import merge_step
from mame_lab.merging.tokens import Tokens

PHOTO, TOP, SIDE, TOKENS, REMOVED = "flower.jpg", 100, 80, 8, 3  # eight patches of 80 x 80 pixels, side by side

# In inches, 100 pixels each in a README; y is that of a middle.
WIDTH, HEIGHT, DPI = 8.0, 4.85, 160
LEFT, PHOTO_WIDTH, PHOTO_TOP = 0.08, 2.4, 4.5
MATRIX, CELL, HEAD = (0.64, 2.02), 0.44, 0.34  # its upper left corner, the side of a cell and of a token beside it
ROWS, ROWS_LEFT, PITCH, TOKEN = (4.15, 2.45, 0.8), 2.98, 0.625, 0.5


class Theme(NamedTuple):
    """Colours on a background."""

    ink: str
    paper: str
    faint: str
    target: str
    source: str


THEMES = {
    "light": Theme(ink="#1f2328", paper="#ffffff", faint="#818b98", target="#0969da", source="#bc4c00"),
    "dark": Theme(ink="#f0f6fc", paper="#0d1117", faint="#7d8590", target="#4493f8", source="#f0883e"),
}


class Step(NamedTuple):
    """One merge step of eight tokens, as the library computes it; tokens are pictures (H, W, 3) between 0 and 1.

    Attributes:
        photo_HW3: what they are cut from.
        before, after, restored: the tokens.
        similarity_TS: of every target and every source.
        size_K: how many original tokens each token after the step is merged from.
        plan: which tokens merge.
    """

    photo_HW3: Tensor
    before: Tensor
    after: Tensor
    restored: Tensor
    similarity_TS: Tensor
    size_K: list[int]
    plan: MergePlan


def merge_patches() -> Step:
    """Merge patches by the cosine similarity of their pixels, from which the mean over the patches is subtracted."""
    photo_HW3 = torch.tensor(np.asarray(read_photo(SKLEARN, PHOTO))) / 255
    before = photo_HW3[TOP : TOP + SIDE].unflatten(1, (TOKENS, SIDE)).transpose(0, 1)
    mean_3 = before.mean((0, 1, 2))
    x_BNC = (before - mean_3).flatten(1)[None]
    tokens, method = Tokens(x_BNC, x_BNC, torch.ones(1, TOKENS, 1), prefix=0), MaMe(r=REMOVED)
    plan, x_BKC, size_BK1, _ = merge_step(method, tokens, REMOVED)
    after, restored = (y_BNC[0].unflatten(1, before.shape[1:]) + mean_3 for y_BNC in (x_BKC, plan.restore(x_BKC)))
    similarity_TS, size_K = method.similarity(tokens)[0], size_BK1.flatten().int().tolist()
    return Step(photo_HW3, before, after, restored, similarity_TS, size_K, plan)


def draw(step: Step, theme: Theme) -> Figure:
    """The photograph and the similarities on the left; the tokens before, after and restored on the right."""
    figure = Figure((WIDTH, HEIGHT), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT), autoscale_on=False)
    axis.set_axis_off()
    _draw_photo(axis, step.photo_HW3)
    _draw_similarity(axis, step, theme)
    _draw_lines(axis, step.plan, theme)
    _draw_tokens(axis, step, theme)
    _write(axis, step, theme)
    return figure


def _draw_photo(axis: Axes, photo_HW3: Tensor) -> None:
    height, width = photo_HW3.shape[:2]
    inch = PHOTO_WIDTH / width
    _picture(axis, photo_HW3, LEFT, PHOTO_TOP - height * inch, PHOTO_WIDTH, height * inch)
    for place in range(TOKENS):
        corner = LEFT + place * SIDE * inch, PHOTO_TOP - (TOP + SIDE) * inch
        axis.add_patch(Rectangle(corner, SIDE * inch, SIDE * inch, fill=False, edgecolor="white", zorder=3))


def _draw_similarity(axis: Axes, step: Step, theme: Theme) -> None:
    """A matrix: the nearest target of each source is bold, and of a source that merges coloured."""
    left, top = MATRIX
    removed, nearest_S = step.plan.source_BR[0].tolist(), step.similarity_TS.argmax(0).tolist()
    for row, similarity_S in enumerate(step.similarity_TS.tolist()):
        y = top - (row + 0.5) * CELL
        _token(axis, step.before[2 * row], left - 0.26, y, HEAD, theme.target)
        for column, similarity in enumerate(similarity_S):
            x, nearest = left + (column + 0.5) * CELL, row == nearest_S[column]
            colour, weight = (theme.ink, "bold") if nearest else (theme.faint, "normal")
            number = f"{similarity:.2f}".replace("-", "\N{MINUS SIGN}")
            axis.text(x, y, number, size=8, ha="center", va="center", color=colour, weight=weight)
            if nearest and 2 * column + 1 in removed:
                side = CELL - 0.06
                axis.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, color=theme.source, alpha=0.3))
    for column in range(TOKENS // 2):
        _token(axis, step.before[2 * column + 1], left + (column + 0.5) * CELL, top + 0.24, HEAD, theme.source)


def _columns(count: int) -> list[float]:
    """Where the tokens of a row stand, the row in the middle."""
    return [ROWS_LEFT + (place + 0.5 + (TOKENS - count) / 2) * PITCH for place in range(count)]


def _draw_lines(axis: Axes, plan: MergePlan, theme: Theme) -> None:
    """From each token to what it is merged into, and from there back to its place."""
    removed = plan.source_BR[0].tolist()
    after = _columns(TOKENS - len(removed))
    for place, row in enumerate(plan.row_BN[0].tolist()):
        merged = place in removed
        colour, width = (theme.source, 2.2) if merged else (theme.faint, 1.0)
        x = _columns(TOKENS)[place]
        for upper, lower, y in ((x, after[row], ROWS[:2]), (after[row], x, ROWS[1:])):
            top, bottom = y[0] - TOKEN / 2, y[1] + TOKEN / 2
            middle = (top + bottom) / 2
            path = Curve([(upper, top), (upper, middle), (lower, middle), (lower, bottom)], [1, 4, 4, 4])
            axis.add_patch(PathPatch(path, fill=False, edgecolor=colour, linewidth=width, zorder=2 if merged else 1))


def _draw_tokens(axis: Axes, step: Step, theme: Theme) -> None:
    """Three rows: before, after with the sizes, restored."""
    colours = [theme.target, theme.source] * (TOKENS // 2)
    for x, before, restored, colour in zip(_columns(TOKENS), step.before, step.restored, colours, strict=True):
        _token(axis, before, x, ROWS[0], TOKEN, colour)
        _token(axis, restored, x, ROWS[2], TOKEN, colour)
    kept, y = step.plan.index_BK[0].tolist(), ROWS[1]
    for x, picture, place, size in zip(_columns(len(kept)), step.after, kept, step.size_K, strict=True):
        _token(axis, picture, x, y, TOKEN, colours[place])
        if size > 1:
            box = {"boxstyle": "round,pad=0.25", "facecolor": theme.source, "linewidth": 0}
            number = axis.text(x + 0.22, y - 0.2, str(size), size=8.5, weight="bold", color=theme.paper, bbox=box)
            number.set(ha="center", va="center", zorder=5)


def _write(axis: Axes, step: Step, theme: Theme) -> None:
    left, right, top = ROWS_LEFT + 0.06, ROWS_LEFT + TOKENS * PITCH - 0.06, HEIGHT - 0.2
    for x, y, align, colour, said in (
        (LEFT, top, "left", theme.ink, "a photograph in patches"),
        (LEFT, 2.64, "left", theme.ink, "2  cosine similarity"),
        (left, top, "left", theme.ink, f"1  {TOKENS} tokens"),
        (right - 0.72, top, "right", theme.target, "targets"),
        (right, top, "right", theme.source, "sources"),
        (left, ROWS[1], "left", theme.ink, f"3  merged to\n    {len(step.size_K)} tokens"),
        (right, ROWS[1], "right", theme.ink, f"sizes\n{' '.join(map(str, step.size_K))}"),
        (left, 0.35, "left", theme.ink, f"4  MaRe restores {TOKENS} tokens"),
    ):
        axis.text(x, y, said, color=colour, size=9.5, ha=align, va="center")


def _token(axis: Axes, picture: Tensor, x: float, y: float, side: float, colour: str) -> None:
    """A square picture around a point, in a frame."""
    _picture(axis, picture, x - side / 2, y - side / 2, side, side)
    corner = x - side / 2, y - side / 2
    axis.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=2, zorder=4))


def _picture(axis: Axes, picture: Tensor, x: float, y: float, width: float, height: float) -> None:
    axis.imshow(picture.clamp(0, 1).numpy(), extent=(x, x + width, y, y + height), aspect="auto", zorder=3)


def main(folder: Path) -> None:
    step = merge_patches()
    for name, theme in THEMES.items():
        draw(step, theme).savefig(folder / f"merge_step_{name}.png", transparent=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
