"""One denoising step of a U-Net, merged and unmerged, over sizes of the latents: time, cost, memory and error.

B batch, C channels, H x W latents, N tokens of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich import print
from rich.table import Table
from torch import Tensor, nn

from mame_lab.benchmarks.denoiser.settings import Denoiser
from mame_lab.data.files import write_csv
from mame_lab.measure import flops, memory, speed
from mame_lab.measure.fidelity import wide
from mame_lab.measure.table import results_table
from mame_lab.merging import METHODS
from mame_lab.models import apply, library_of, shared_copy

UNMERGED = "unmerged"


class DenoiserRow(NamedTuple):
    """One arm at one size.

    Attributes:
        latents: rows and columns.
        tokens: of a sample, at the finest resolution.
        arm: the method, or unmerged.
        ms: a step, median.
        saved: share of the unmerged step's time, median over the rounds.
        saved_ideally: share of its multiply-adds.
        merging_ms: the merge steps of a step and their undoing, by themselves.
        memory_mb: peak of a step, beyond weights and input.
        error: distance of the output from the unmerged one, over the norm of that.
    """

    latents: int
    tokens: int
    arm: str
    ms: float
    saved: float
    saved_ideally: float
    merging_ms: float | None
    memory_mb: float | None
    error: float


def run(settings: Denoiser, pipe: Any, method: object, data: object, trainer: object, folder: Path) -> None:
    """Time all arms of a pipeline's U-Net on noise; print the table and write denoiser.csv."""
    unet = pipe.unet
    found = []
    budget = {"r": settings.r, "blocks": settings.blocks, "grid": settings.grid}
    methods = {name: METHODS[name](**budget) for name in settings.methods}
    unets = {UNMERGED: unet} | {name: apply(shared_copy(unet), method) for name, method in methods.items()}
    for latents in settings.latents:
        found += rows(unets, noise(unet, latents, settings.batch_size), settings.rounds)
        write_csv(folder / "denoiser.csv", DenoiserRow._fields, found)
    print(table(found, settings))


def rows(unets: dict[str, Any], inputs: dict[str, Tensor], rounds: int) -> Iterator[DenoiserRow]:
    """All arms at one size."""
    unet = unets[UNMERGED]
    sample = inputs["sample"]
    arms: dict[Any, Callable[[], object]] = {arm: partial(each, **inputs) for arm, each in unets.items()}
    with torch.inference_mode():
        original = wide(unet(**inputs).sample)
        arms |= {(arm, "merging"): _merge_steps(each, inputs) for arm, each in unets.items() if each is not unet}
        taken = speed.time_interleaved(arms, unet.device, max_rounds=rounds, min_rounds=rounds, warmup=1)
        for arm, each in unets.items():
            merging = taken.get((arm, "merging"))
            yield DenoiserRow(
                latents=sample.shape[-1],
                tokens=max(library_of(unet).tokens(unet, sample)),
                arm=arm,
                ms=1e3 * median(taken[arm]),
                saved=1 - 1 / speed.speedup(taken[arm], taken[UNMERGED]),
                saved_ideally=1 - _gflops(each, inputs) / _gflops(unet, inputs),
                merging_ms=None if merging is None else 1e3 * median(merging),
                memory_mb=memory.peak_memory_mb(arms[arm], unet.device),
                error=float((wide(each(**inputs).sample) - original).norm() / original.norm()),
            )


def noise(unet: Any, latents: int, batch: int) -> dict[str, Any]:
    """What a U-Net is called with: noise for latents and for a prompt of 77 tokens, from seed 0."""
    config = unet.config
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "sample": (batch, config.in_channels, latents, latents),
        "encoder_hidden_states": (batch, 77, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":  # Stable Diffusion XL
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        shapes |= {"text_embeds": (batch, width), "time_ids": (batch, 6)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    moved = {name: tensor.to(unet.device, unet.dtype) for name, tensor in drawn.items()}
    added = {name: moved.pop(name) for name in ("text_embeds", "time_ids") if name in moved}
    return moved | {"timestep": torch.tensor(500, device=unet.device), "added_cond_kwargs": added}


def _gflops(unet: nn.Module, inputs: dict[str, Tensor]) -> float:
    return flops.gflops_by_shapes(lambda sample: unet(**(inputs | {"sample": sample})), inputs["sample"])


def _merge_steps(unet: nn.Module, inputs: dict[str, Tensor]) -> Callable[[], None]:
    """A call that merges and restores what the self-attentions of one step are given, and does nothing else."""
    given: list[tuple[nn.Module, Tensor, Any]] = []

    def keep(module: nn.Module, arguments: tuple, named: dict[str, Any]) -> None:
        given.append((module, arguments[0], named["merging"]))

    attentions = [module for module in unet.modules() if hasattr(module, "level")]
    hooks = [attention.register_forward_pre_hook(keep, with_kwargs=True) for attention in attentions]
    unet(**inputs)
    for hook in hooks:
        hook.remove()

    def steps() -> None:
        for attention, x_BNC, merging in given:
            plan = merging.plan(attention.level, x_BNC)
            if plan is not None:
                plan.restore(plan.merge(x_BNC))

    return steps


def table(found: list[DenoiserRow], settings: Denoiser) -> Table:
    """A section for each size."""
    title = f"One denoising step, batch {settings.batch_size}, r={settings.r}: same weights, same run"
    headers = "latents", "tokens", "", "ms", "saved", "ideal", "merging, ms", "memory, MB", "error"
    rows = results_table(title, headers)
    for row in found:
        first = row.arm == UNMERGED
        if first:
            rows.add_section()
        cells = [row.arm, f"{row.ms:.0f}"]
        cells += ["", "", ""] if first else [_percent(row.saved), _percent(row.saved_ideally), f"{row.merging_ms:.1f}"]
        cells += ["" if row.memory_mb is None else f"{row.memory_mb:.0f}", "" if first else f"{row.error:.2g}"]
        rows.add_row(f"{row.latents}x{row.latents}" if first else "", str(row.tokens) if first else "", *cells)
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
