"""The chart of tokens by block."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
from altair.typing import ChartType

from mame_lab.report.pareto import Model
from mame_lab.report.style import HOVER, INK, LABELLED, Marks, Row, nothing

WIDTH, HEIGHT = 1076, 230  # px


def chart(models: Sequence[Model], rows: Sequence[Row], marks: Marks) -> ChartType:
    """A line for each run, from the tokens that enter the first block to those that leave the last."""
    merged = [(model, row) for model, row in zip(models, rows, strict=True) if model.merged]
    values = [
        row | {"block": block, "tokens": tokens}
        for model, row in merged
        for block, tokens in enumerate([model.result.unmerged.tokens[0], *model.arm.tokens])
    ]
    title = "Tokens by block"
    if not values:
        return nothing(f"{title}: no run has a result", WIDTH, HEIGHT)
    ticks = alt.Axis(values=sorted({value["block"] for value in values}), format="d")
    x = alt.X("block:Q", title="after block (0: before the first)", axis=ticks)
    y = alt.Y("tokens:Q", title="tokens, mean over images", scale=alt.Scale(zero=False, padding=10))
    base = alt.Chart(alt.Data(values=values)).encode(x, y, detail="run:N", color=marks.colour, tooltip=marks.tooltip)
    lines = base.mark_line(strokeWidth=2).encode(strokeDash=marks.dash, opacity=marks.opacity)
    points = base.mark_circle(size=200, opacity=0).add_params(HOVER)
    layers = [lines, points]
    if ends := _ends([model for model, _ in merged]):
        labels = alt.Chart(alt.Data(values=ends)).mark_text(align="left", dx=9, color=INK, fontSize=12, limit=60)
        layers.append(labels.encode(x, y, text="runs:N"))
    return alt.layer(*layers).properties(title=title, width=WIDTH, height=HEIGHT)


def _ends(merged: Sequence[Model]) -> list[Row]:
    """Where lines end, with the names of their runs; ends that lie close together share a label."""
    if len(merged) > LABELLED:
        return []
    ordered = sorted(merged, key=lambda model: (len(model.arm.tokens), model.arm.tokens[-1]))
    most = max(model.result.unmerged.tokens[0] for model in merged)
    near = (most - min(model.arm.tokens[-1] for model in merged)) * 14 / HEIGHT
    labels: list[Row] = []
    for model in ordered:
        place, name = {"block": len(model.arm.tokens), "tokens": model.arm.tokens[-1]}, model.runs[0].name
        if labels and labels[-1]["block"] == place["block"] and place["tokens"] - labels[-1]["tokens"] <= near:
            labels[-1]["runs"] += f", {name}"
        else:
            labels.append(place | {"runs": name})
    return labels
