"""Speed-up of each arm as bars, beside what the multiply-adds would allow."""

from __future__ import annotations

from matplotlib.figure import Figure

from mame_lab.benchmarks.suite.rows import SuiteRow


def chart(found: list[SuiteRow]) -> Figure:
    """One bar an arm of a model; the black mark is its FLOP-ideal."""
    arms_of_models = [row for row in found if row.arm != "unmerged" and row.what != "attention"]
    bars = [row for row in arms_of_models if row.speedup is not None]
    figure = Figure(figsize=(8, 1 + 0.22 * len(bars)), layout="constrained")
    axes = figure.subplots()
    arms = list(dict.fromkeys(row.arm for row in bars))
    for place, row in enumerate(bars):
        axes.barh(place, row.speedup or 0, color=f"C{arms.index(row.arm)}")
        if row.ideal is not None:
            axes.plot([row.ideal, row.ideal], [place - 0.4, place + 0.4], color="black", linewidth=2)
    names = [f"{row.subject}, batch {row.batch}, {row.what}: {row.arm}" for row in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="gray", linewidth=1)
    axes.set(
        xlabel="speed-up over the unmerged model (black: the ratio of multiply-adds)", ylim=(len(bars) - 0.5, -0.5)
    )
    return figure
