"""The Result as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from mame_lab.measure.result import ModelMeasurement, Result

LEGEND = (
    "[low, high]: 95 % interval, of a change by what differs on the same samples. Agreement: same top-1 class as "
    "unmerged. KL: divergence of merged from unmerged class probabilities. Feature error: how far merging moves a "
    "feature, over how far features lie from their mean. GFLOPs: 1e9 multiply-adds of the images that are timed; "
    "FLOP-ideal realised: speed-up over the ratio of GFLOPs. p50, p95: median and tail, of a batch."
)


def result_table(result: Result) -> Table:
    """What was measured, and below it what the terms mean and the conditions."""
    table = Table(
        title="Merged against unmerged: same weights, same run",
        caption=Text(f"{LEGEND}\n\n{result.conditions}"),
        caption_justify="left",
        box=box.HORIZONTALS,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for header in ("", "merged", "unmerged", "change"):
        table.add_column(header)
    for heading, rows in (
        (f"Accuracy, {result.evaluated_by}", _accuracy(result)),
        ("Label-free fidelity", _fidelity(result)),
        ("Cost", _cost(result)),
        (f"Speed, batch {result.conditions.batch}", _speed(result)),
    ):
        if measured := list(rows):
            table.add_section()
            table.add_row(f"[bold]{heading}")
        for row in measured:
            table.add_row(*row)
    return table


def _accuracy(result: Result) -> Iterator[tuple[str, ...]]:
    for name, of in (("top-1", "top1"), ("top-5", "top5")):
        merged, unmerged = getattr(result.merged, of), getattr(result.unmerged, of)
        if merged and unmerged:
            change = getattr(result, f"{of}_change") or f"{100 * (merged.value - unmerged.value):+.1f} points"
            yield name, *(f"{100 * arm.value:.1f} %" for arm in (merged, unmerged)), str(change)


def _fidelity(result: Result) -> Iterator[tuple[str, ...]]:
    if result.agreement is not None:
        yield "agreement", str(result.agreement)
    if result.kl is not None:
        yield "KL, nats", f"{result.kl:.2g}"
    if result.feature_error is not None:
        yield "feature error", f"{result.feature_error:.2g}"


def _cost(result: Result) -> Iterator[tuple[str, ...]]:
    merged, unmerged = result.merged, result.unmerged
    yield from _ratio("GFLOPs a sample", merged.gflops, unmerged.gflops)
    yield "tokens after blocks", _tokens(merged), _tokens(unmerged)
    yield from _ratio("peak memory, MB", merged.peak_memory_mb, unmerged.peak_memory_mb)


def _speed(result: Result) -> Iterator[tuple[str, ...]]:
    merged, unmerged = result.merged, result.unmerged
    yield from _ratio("samples/s", merged.samples_per_s, unmerged.samples_per_s, result.speedup)
    if (processes := result.conditions.processes) > 1:
        total = merged.samples_per_s * processes, unmerged.samples_per_s * processes
        yield from _ratio(f"samples/s, all {processes}", *total, result.speedup)
    yield from _ratio("latency p50, ms", merged.latency_ms_p50, unmerged.latency_ms_p50)
    yield from _ratio("latency p95, ms", merged.latency_ms_p95, unmerged.latency_ms_p95)
    yield from _ratio(
        f"training, batch {result.train_batch}",
        merged.train_samples_per_s,
        unmerged.train_samples_per_s,
        result.train_speedup,
    )
    if result.loader_samples_per_s is not None:
        yield "data loader alone", number(result.loader_samples_per_s)
    if result.realised is not None:
        yield "FLOP-ideal realised", f"{100 * result.realised:.0f} %", "", f"of {result.ideal_speedup:.2f}x"


def _ratio(
    name: str, merged: float | None, unmerged: float | None, ratio: float | None = None
) -> Iterator[tuple[str, ...]]:
    """A row of two numbers and their ratio, unless that was measured by itself."""
    if merged is not None and unmerged is not None:
        change = merged / unmerged if ratio is None else ratio
        yield name, number(merged), number(unmerged), f"{change:.2f}x"


def number(x: float, separator: str = "") -> str:
    """At least three digits, never an exponent; `separator` stands between thousands."""
    decimals = 2 - math.floor(math.log10(x)) if x > 0 else 0
    return f"{x:{separator}.{max(0, decimals)}f}"


def _tokens(arm: ModelMeasurement) -> str:
    counts = [f"{tokens:.0f}" for tokens in arm.tokens]
    return f"{counts[0]} in all" if len(set(counts)) == 1 else " ".join(counts)
