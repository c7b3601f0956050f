"""The table of a synthesis: a column for each arm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from mame_lab.measure.result import ModelMeasurement
from mame_lab.measure.table import number, results_table

if TYPE_CHECKING:
    from mame_lab.measure.result import Result

LEGEND = (
    "Likeness to the unmerged image of the same prompt and seed: PSNR, SSIM, LPIPS (lower is nearer). High-frequency "
    "energy: share of a luminance's spectral power above half the Nyquist frequency. A step: a pass of the U-Net over "
    "the batch of an image, timed in turns by itself; an image: all steps, text encoder and decoder. GFLOPs: 1e9 "
    "multiply-adds of the U-Net in all steps. Tokens: what self-attention sees at each resolution."
)


def quality_table(results: Mapping[str, Result]) -> Table:
    """What was measured, and below it what the terms mean and the conditions.

    Args:
        results: merging arms against the same unmerged one, the first that of the run.
    """
    first = next(iter(results.values()))
    title = "Images of the same prompts and seeds: same weights, same run"
    headers = "", "unmerged", *(result.conditions.more["merging"] for result in results.values())
    rows = results_table(title, headers, f"{LEGEND}\n\n{first.conditions}")
    for name in first.merged.quality:
        rows.add_row(name, *(_quality(arm, name) for arm in (first.unmerged, *_merged(results))))
    rows.add_section()
    for name, attribute in (("image, s", "latency_ms_p50"), ("step, ms", "step_ms_p50"), ("GFLOPs", "gflops")):
        scale = 1e-3 if attribute == "latency_ms_p50" else 1
        rows.add_row(name, *_against(first.unmerged, results, attribute, scale))
    if first.unmerged.peak_memory_mb is not None:
        rows.add_row("peak memory of a step, MB", *_against(first.unmerged, results, "peak_memory_mb"))
    rows.add_row("tokens", *(" ".join(f"{n:.0f}" for n in arm.tokens) for arm in (first.unmerged, *_merged(results))))
    return rows


def _merged(results: Mapping[str, Result]) -> Iterator[ModelMeasurement]:
    return (result.merged for result in results.values())


def _quality(arm: ModelMeasurement, name: str) -> str:
    return f"{arm.quality[name]:.3g}" if name in arm.quality else ""


def _against(
    unmerged: ModelMeasurement, results: Mapping[str, Result], attribute: str, scale: float = 1
) -> Iterator[str]:
    """The number of each arm, with its change from the unmerged one."""
    base = getattr(unmerged, attribute)
    yield number(base * scale)
    for arm in _merged(results):
        value = getattr(arm, attribute)
        yield f"{number(value * scale)} ({100 * (value / base - 1):+.0f} %)"
