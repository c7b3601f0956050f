"""What merging on a grid does to the output of attention: the choices behind merging in U-Nets, side by side.

The attention layers of a timm ViT at a high resolution stand in for those of a U-Net. Each is given the normalised
patch tokens of a photograph (without class and register tokens, which a U-Net has not), once as they are and once
merged, and the merged output is restored to the grid, as `mame_lab.models.diffusers.unet` does.

python eval.py benchmark=grid_attention model=dinov2_s model.weights=FILE model.img_size=672 \\
    dataset=imagefolder dataset.root=FOLDER

FILE a DINOv2-type ViT-S/14, FOLDER/val 8 photographs of imagenet-sample-images, evenly spaced by name, shorter side
256 px (tench, dowitcher, siamese cat, barometer, gasmask, petri dish, theater curtain, ear); 2026-11-27, float32.
Error of the output, in brackets over that of `ward`, which is how mame_lab merges in U-Nets:

                          r=0.25         r=0.5          r=0.75         search
tomesd                    0.186 (3.35x)  0.323 (2.60x)  0.296 (1.03x)  7.0 %
tomesd, proportional      0.063 (1.01x)  0.131 (1.00x)  0.274 (0.95x)  7.0 %
ward                      0.062          0.131          0.288          0.8 %
not proportional          0.182 (3.29x)  0.314 (2.54x)  0.302 (1.05x)  0.8 %
windows of 8              0.063 (1.02x)  0.134 (1.02x)  0.308 (1.07x)  0.2 %
no windows                0.062 (0.99x)  0.130 (0.99x)  0.277 (0.96x)  7.0 %
evenly in each window     0.074 (1.23x)  0.144 (1.11x)  0.288 (1.00x)  0.8 %
checkerboard, no windows  0.060 (0.96x)  0.179 (1.41x)  -              9.4 %
cosine                    0.063 (1.02x)  0.134 (1.02x)  0.288 (1.00x)  0.8 %
on keys                   0.060 (0.97x)  0.128 (0.98x)  0.287 (1.00x)  0.1 %
half of the norm back     0.062 (1.00x)  0.133 (1.01x)  0.290 (1.01x)  0.8 %
spread, no windows        0.063 (1.04x)  0.130 (0.99x)  0.276 (0.96x)  7.0 %

Proportional attention is what matters most, then cells of 2 x 2 and a choice over the whole grid. All else moves the
error by at most 7 %, and windows of 16 spare nine tenths of the search. On 8 other photographs (rock python, norwich
terrier, ant, beach wagon, football helmet, oil filter, space bar, head cabbage) the order is the same: not proportional
4.02x, 2.37x, 1.05x (tomesd 4.06x, 2.41x, 1.03x); evenly 1.32x, 1.10x, 1.00x; checkerboard 1.02x, 1.39x;
all else from 0.96x to 1.09x.

1 a batch of one, N tokens of the grid, K tokens that remain, C channels, D channels of a head.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from rich import print
from rich.table import Table
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mame_lab.benchmarks.grid_attention.settings import GridAttention
from mame_lab.benchmarks.grid_attention.variants import ARMS, REFERENCE, Arm, spread
from mame_lab.data.datamodule import ImageData
from mame_lab.data.files import write_csv
from mame_lab.data.progress import track
from mame_lab.errors import MameLabError
from mame_lab.measure.comparison import captured_input
from mame_lab.measure.conditions import Conditions, gather_conditions, weights_hash
from mame_lab.measure.fidelity import wide
from mame_lab.measure.flops import gflops
from mame_lab.measure.precision import converted, prepared
from mame_lab.measure.table import results_table
from mame_lab.merging.attention import Attention
from mame_lab.merging.grid.assignment import Match, assign
from mame_lab.merging.plan import stretch
from mame_lab.merging.schedule import Schedule
from mame_lab.models import family_of

Errors = dict[tuple[str, float], list[float]]  # by arm and budget


class GridAttentionRow(NamedTuple):
    """One arm at one budget.

    Attributes:
        arm: `ward` as it merges in U-Nets, what differs from it, or ToMe for Stable Diffusion.
        r: share of the tokens that are removed.
        error: distance of the restored output from the unmerged one, over the distance of that from its mean over the
            tokens; mean over layers and images.
        of_ward: the error of an image over that of `ward`, mean over images.
        deviation: the standard deviation of that over images.
        search: multiply-adds of the similarity, over those of the layer unmerged.
    """

    arm: str
    r: float
    error: float
    of_ward: float
    deviation: float
    search: float


class Layer(NamedTuple):
    """An attention layer, what an image gives it, the keys (mean over heads), and what it gives unmerged."""

    attention: nn.Module
    x_1NC: Tensor
    key_1ND: Tensor
    y_1NC: Tensor

    def given(self, arm: Arm) -> Tensor:
        """What an arm compares."""
        return self.key_1ND if arm.on_keys else self.x_1NC


def run(
    settings: GridAttention, model: nn.Module, method: object, data: ImageData, trainer: Trainer, folder: Path
) -> None:
    """Measure all arms; print the table and write grid_attention.csv."""
    if type(model) is not VisionTransformer:
        raise MameLabError(
            f"benchmark=grid_attention looks at the attention of timm's VisionTransformer, and the model is a "
            f"{type(model).__qualname__}: choose one of these, such as model=dinov2_s"
        )
    images, model = converted(data.sample(settings.images)[0], trainer), prepared(model, trainer).eval()
    with torch.inference_mode(), trainer.precision_plugin.forward_context():
        found = rows(settings, model, images)
    write_csv(folder / "grid_attention.csv", GridAttentionRow._fields, found)
    conditions = gather_conditions(
        images.device,
        trainer.precision,
        batch=1,
        rounds=1,
        seed=data.seed,
        weights=weights_hash(model),
        library="timm",
        dataset=data.dataset.name,
        images=settings.images,
        pixels="x".join(map(str, images.shape[-2:])),
    )
    print(table(found, conditions))


def rows(settings: GridAttention, model: VisionTransformer, images: Tensor) -> list[GridAttentionRow]:
    """All arms at the first budget, then at the next."""
    rows, columns = family_of(model).grid(model, images)
    grid = rows, columns
    errors: Errors = defaultdict(list)
    for image_13HW in track(images.split(1), "images"):
        of_layers: Errors = defaultdict(list)
        for layer in layers(model, image_13HW):
            for arm, r, found in layer_errors(layer, grid, settings.r):
                of_layers[arm, r].append(found)
        for key, found in of_layers.items():
            errors[key].append(mean(found))
    shares = search_shares(next(layers(model, images[:1])), grid)
    return [_row(arm, r, errors, shares[arm]) for r in settings.r for arm in ARMS if (arm, r) in errors]


def _row(arm: str, r: float, errors: Errors, share: float) -> GridAttentionRow:
    of_ward = [error / ward for error, ward in zip(errors[arm, r], errors[REFERENCE, r], strict=True)]
    return GridAttentionRow(arm, r, mean(errors[arm, r]), mean(of_ward), stdev(of_ward), share)


def layers(model: VisionTransformer, image_13HW: Tensor) -> Iterator[Layer]:
    """The attention layers of the model, one after the other."""
    attentions = [model.get_submodule(f"{name}.attn") for name in family_of(model).block_names(model)]
    with ExitStack() as hooks:
        inputs = [hooks.enter_context(captured_input(attention)) for attention in attentions]
        model(image_13HW)
    for attention, (x_1NC,) in zip(attentions, inputs, strict=True):
        x_1NC = x_1NC[:, model.num_prefix_tokens :]
        with Attention() as seen:
            y_1NC = attention(x_1NC)
        yield Layer(attention, x_1NC, seen.calls[0].key_BHND.mean(1), y_1NC)


def layer_errors(layer: Layer, grid: tuple[int, int], budgets: list[float]) -> Iterator[tuple[str, float, float]]:
    """Arm, budget and error, at all budgets for which an arm has enough sources.

    Raises:
        MameLabError: `ward` has not.
    """
    tokens = layer.x_1NC.shape[1]
    for name, arm in ARMS.items():
        match = arm.method.match(layer.given(arm), grid)
        sources = len(match.source_S)
        for r in budgets:
            removed = Schedule((r,)).removed(0, tokens, tokens) or 0
            if removed <= sources:
                yield name, r, error(arm, layer, match, removed)
            elif name == REFERENCE:
                raise MameLabError(
                    f"benchmark.r={r} is too large for a grid of {grid[0]} x {grid[1]}, where {sources} of {tokens} "
                    f"tokens can be removed: give less, or a model.img_size of an even number of patches"
                )


def error(arm: Arm, layer: Layer, match: Match, removed: int) -> float:
    """How far the output of a layer moves where so many tokens are removed; see `GridAttentionRow`."""
    x_1NC, y_1NC = layer.x_1NC, wide(layer.y_1NC)
    plan = assign(match, x_1NC.shape[1], removed)
    if arm.temperature is not None:
        plan = spread(plan, match, x_1NC, arm.temperature)
    x_1KC = plan.merge(x_1NC)
    if arm.keep_norm:
        norm_1K1 = plan.merge(x_1NC.norm(dim=-1, keepdim=True))
        x_1KC = x_1KC * stretch(x_1KC, norm_1K1) ** arm.keep_norm
    mask_111K = plan.bias_B1K()[:, None].to(x_1KC.dtype) if arm.method.prop_attn else None
    moved_1NC = wide(plan.restore(layer.attention(x_1KC, attn_mask=mask_111K))) - y_1NC
    return float(moved_1NC.norm() / (y_1NC - y_1NC.mean(1, keepdim=True)).norm())


def search_shares(layer: Layer, grid: tuple[int, int]) -> dict[str, float]:
    """Multiply-adds of the similarity of each arm, over those of the layer unmerged."""
    unmerged = gflops(layer.attention, layer.x_1NC)[""]
    return {
        name: gflops(lambda x, arm=arm: arm.method.match(x, grid), layer.given(arm))[""] / unmerged
        for name, arm in ARMS.items()
    }


def table(found: list[GridAttentionRow], conditions: Conditions) -> Table:
    """A row for each arm, a column for each budget."""
    legend = (
        f"Error: of the restored output. In brackets: over that of {REFERENCE}. Search: multiply-adds of the "
        f"similarity, over those of the layer unmerged."
    )
    budgets = dict.fromkeys(row.r for row in found)
    headers = "", *(f"error, r={r:g}" for r in budgets), "search"
    rows = results_table("Attention between merging and restoring", headers, f"{legend}\n\n{conditions}", no_wrap=True)
    for arm in dict.fromkeys(row.arm for row in found):
        of_arm = {row.r: row for row in found if row.arm == arm}
        cells = [f"{row.error:.3f} ({row.of_ward:.2f}x)" if (row := of_arm.get(r)) else "" for r in budgets]
        rows.add_row(arm, *cells, f"{100 * next(iter(of_arm.values())).search:.1f} %")
    return rows
