"""The Result as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from mame_lab.measure.metrics import METRICS
from mame_lab.measure.proportion import Proportion, percent
from mame_lab.measure.result import Result, Score, shown_fields
from mame_lab.measure.table import number, results_table

LEGEND = (
    "[low, high]: 95 % interval, of a change by what differs on the same samples. Agreement: same top-1 class as "
    "unmerged. KL: divergence of merged from unmerged class probabilities. Feature error: how far merging moves a "
    "feature, over how far features lie from their mean. GFLOPs: 1e9 multiply-adds of the images that are timed; "
    "FLOP-ideal realised: the share of the ideal speed-up, GFLOPs unmerged over merged, that is measured. p50, p95: "
    "median and tail, of a batch."
)


def result_table(result: Result) -> Table:
    """What was measured, and below it what the terms mean and the conditions."""
    meanings = [metric.meaning for name, metric in METRICS.items() if metric.meaning and name in result.merged.scores]
    table = results_table(
        "Merged against unmerged: same weights, same run",
        ("", "merged", "unmerged", "change"),
        f"{' '.join([LEGEND, *meanings])}\n\n{result.conditions}",
    )
    for heading, rows in (
        (f"Accuracy, {result.evaluated_by}", _scores(result)),
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


def _scores(result: Result) -> Iterator[tuple[str, ...]]:
    for name, metric in METRICS.items():
        merged, unmerged = (_value(arm.scores.get(name)) for arm in (result.merged, result.unmerged))
        if merged is not None and unmerged is not None:
            change = result.changes.get(name) or f"{round(100 * (merged - unmerged), 1) + 0:+.1f} points"
            yield metric.title, percent(merged), percent(unmerged), str(change)


def _value(score: Score | None) -> float | None:
    return score.value if isinstance(score, Proportion) else score


def _fidelity(result: Result) -> Iterator[tuple[str, ...]]:
    for each, value in shown_fields(result):
        if each.metadata["group"] == "test" and value is not None:
            yield each.metadata["title"], str(value) if isinstance(value, Proportion) else f"{value:.2g}"


def _both(result: Result, group: str) -> Iterator[tuple[str, ...]]:
    """What is a number of each model."""
    unmerged = {each.name: value for each, value in shown_fields(result.unmerged)}
    for each, value in shown_fields(result.merged):
        if each.metadata["group"] == group and value is not None and (other := unmerged[each.name]) is not None:
            title, ratio = each.metadata["title"].format_map(vars(result)), each.metadata["ratio"]
            yield _compared(title, value, other, getattr(result, ratio) if ratio else None)


def _cost(result: Result) -> Iterator[tuple[str, ...]]:
    gflops, *others = _both(result, "cost")
    yield gflops
    yield "tokens after blocks", _tokens(result.merged.tokens), _tokens(result.unmerged.tokens)
    yield from others


def _speed(result: Result) -> Iterator[tuple[str, ...]]:
    yield from _both(result, "speed")
    if (processes := result.conditions.processes) > 1:
        arms = (arm.samples_per_s * processes for arm in (result.merged, result.unmerged))
        yield _compared(f"samples/s, all {processes}", *arms, result.speedup)
    if result.loader_samples_per_s is not None:
        yield "data loader alone", number(result.loader_samples_per_s)
    if result.realised is not None:
        yield "FLOP-ideal realised", f"{100 * result.realised:.0f} %", "", f"of {result.ideal_speedup:.2f}x"


def _compared(title: str, merged: float, unmerged: float, ratio: float | None = None) -> tuple[str, ...]:
    return title, number(merged), number(unmerged), f"{merged / unmerged if ratio is None else ratio:.2f}x"


def _tokens(tokens: list[float]) -> str:
    counts = [f"{count:.0f}" for count in tokens]
    return f"{counts[0]} in all" if len(set(counts)) == 1 else " ".join(counts)
