"""The tables and plots of the frontier, one of each measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.table import Table

from mame_lab.benchmarks.frontier.arms import REFERENCE
from mame_lab.benchmarks.frontier.point import FrontierPoint
from mame_lab.measure.table import results_table

# Of the methods, one after the other: the full ones, then the pale ones.
COLORS = [colormaps["tab20"](i) for i in (*range(0, 20, 2), *range(1, 20, 2))]
# Line and marker of each schedule, and of thresholds; the colour is the method's.
STYLES = {
    "constant": ("-", "o"),
    "linear": ("-", "v"),
    "geometric": ("--", "s"),
    "diffrate": ("-.", "D"),
    "adaptive": (":", "^"),
}


class Measure(NamedTuple):
    """What is compared.

    Attributes:
        name: of its plot's file.
        value, ratio: its columns.
        label: what the value is.
        percent: whether it is a share, of which more is better; else an error.
    """

    name: str
    value: str
    ratio: str
    label: str
    percent: bool = False


MEASURES = (
    Measure("feature", "feature_error", "feature_ratio", "Error of the pooled feature"),
    Measure("tokens", "token_error", "token_ratio", "Error of the restored patch tokens"),
    Measure("top1", "top1", "top1_ratio", "Top-1 of a linear head", percent=True),
)


def table(found: Sequence[FrontierPoint], measure: Measure) -> Table:
    """A row for each arm, a column for each cost."""
    title = f"{measure.label}, and times the loss of {REFERENCE}"
    headers = "", *dict.fromkeys(f"cost {point.asked:g}" for point in found)
    rows = results_table(title, headers, _caption(found, measure), no_wrap=True)
    for arm in _arms(found):
        rows.add_row(arm, *(_cell(point, measure) for point in found if point.arm == arm))
    return rows


def _cell(point: FrontierPoint, measure: Measure) -> str:
    value, ratio = getattr(point, measure.value), getattr(point, measure.ratio)
    if value is None:
        return "-"
    shown = f"{100 * value:.1f}{'*' if _differs(point) else ' '}" if measure.percent else f"{value:.4f}"
    return shown if ratio is None else f"{shown} {ratio:.2f}x"


def _differs(point: FrontierPoint) -> bool:
    return point.top1_p is not None and point.top1_p < 0.05


def _caption(found: Sequence[FrontierPoint], measure: Measure) -> str:
    off = max(abs(point.cost - point.asked) for point in found if point.cost is not None)
    costs = f"Cost: share of the unmerged model's multiply-adds; it is off by at most {off:.3f}. -: not reached."
    if not measure.percent:
        return costs
    return f"In %; unmerged {100 * _unmerged(found):.1f}. *: differs from it, p < 0.05 (exact McNemar test). {costs}"


def _unmerged(found: Sequence[FrontierPoint]) -> float:
    return next(point.top1_unmerged for point in found if point.top1_unmerged is not None)


def figure(found: Sequence[FrontierPoint], measure: Measure) -> Figure:
    """The measure against cost: a line for each arm, its colour says the method, its dashes and marker the schedule."""
    lines = {arm: _line(found, arm, measure) for arm in _arms(found)}
    plot = Figure(figsize=(8, max(5, 0.5 + 0.22 * len(lines))), layout="constrained")
    axes = plot.subplots()
    for arm in sorted(filter(lines.get, lines), key=lambda arm: -lines[arm][0][1]):  # As they lie at the lowest cost.
        axes.plot(*zip(*lines[arm], strict=True), label=arm, **_style(arm, _arms(found)))
    if measure.percent:
        axes.axhline(100 * _unmerged(found), color="black", linewidth=0.8, linestyle=(0, (1, 3)), label="unmerged")
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("cost: share of the unmerged model's multiply-adds")
    axes.set_ylabel(f"{measure.label}, %" if measure.percent else measure.label)
    axes.grid(alpha=0.3, which="both")
    plot.legend(loc="outside right upper", frameon=False, handlelength=3.5)
    return plot


def _line(found: Sequence[FrontierPoint], arm: str, measure: Measure) -> list[tuple[float, float]]:
    """Cost and value, from the lowest cost on."""
    scale = 100 if measure.percent else 1
    return sorted(
        (point.cost, scale * getattr(point, measure.value))
        for point in found
        if point.arm == arm and point.cost is not None
    )


def _style(arm: str, arms: Sequence[str]) -> dict:
    method, schedule, *unweighted = arm.split(":")
    reference, _ = REFERENCE.split(":")
    others = [name for name in dict.fromkeys(arm.split(":")[0] for arm in arms) if name != reference]
    color = "black" if method == reference else COLORS[others.index(method) % len(COLORS)]
    linestyle, marker = STYLES.get(schedule, ("-", "o"))
    return {
        "color": color,
        "linestyle": linestyle,
        "marker": marker,
        "markersize": 5,
        "markerfacecolor": "white" if unweighted else color,
        "linewidth": 2.5 if arm == REFERENCE else 1.5,
        "zorder": 3 if arm == REFERENCE else 2,
    }


def _arms(found: Sequence[FrontierPoint]) -> list[str]:
    return list(dict.fromkeys(point.arm for point in found))
