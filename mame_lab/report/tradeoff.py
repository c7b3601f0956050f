"""The chart of accuracy against what it is traded for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
from altair.typing import ChartType

from mame_lab.report.pareto import Axis, Model, optimal
from mame_lab.report.style import HOVER, INK, LABELLED, LINE, Marks, Row, nothing

WIDTH, HEIGHT = 490, 340  # px
KINDS = ("Pareto-optimal run", "other run", "unmerged")
HOLLOW_DIAMOND = "M0,-1L1,0L0,1L-1,0ZM0,-0.6L-0.6,0L0,0.6L0.6,0Z"


def chart(models: Sequence[Model], rows: Sequence[Row], axis: Axis, marks: Marks) -> ChartType:
    """A point with its 95 % interval for each model, and a line through those that are Pareto-optimal."""
    judged = [(model, row, top1) for model, row in zip(models, rows, strict=True) if (top1 := model.arm.top1)]
    title = f"Accuracy against {axis.name}"
    if not judged:
        return nothing(f"{title}: no run has an accuracy", WIDTH, HEIGHT)
    best = optimal(models, axis)
    values = [
        row
        | {"amount": axis.amount(model.arm), "top1": 100 * top1.value, "front": model in best}
        | {"low": 100 * top1.interval[0], "high": 100 * top1.interval[1]}
        | {"kind": KINDS[2] if not model.merged else KINDS[0] if model in best else KINDS[1]}
        for model, row, top1 in judged
    ]
    near = alt.Scale(zero=False, padding=24)
    x = alt.X("amount:Q", title=axis.title, scale=near)
    y = alt.Y("top1:Q", title="top-1 accuracy, %", scale=near)
    kinds = {
        "shape": _by_kind(alt.Shape, "nominal", "circle", "circle", HOLLOW_DIAMOND),
        "size": _by_kind(alt.Size, "ordinal", 150, 50, 130),
    }
    base = alt.Chart(alt.Data(values=values)).encode(x, y, opacity=marks.opacity, tooltip=marks.tooltip)
    line = base.transform_filter("datum.front").mark_line(color=LINE).encode(opacity=alt.value(1))
    intervals = base.mark_rule(strokeWidth=1.5, strokeOpacity=0.5).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    points = base.mark_point(filled=True, opacity=1).encode(description="text0:N", **kinds).add_params(HOVER)
    labels = [
        alt.Chart(alt.Data(values=names))
        .mark_text(align="left" if right > 0 else "right", dx=9 * right, dy=-9 * above, color=INK, fontSize=12)
        .encode(x, y, text="names:N", opacity=marks.opacity)
        for each, right, above in (
            ([row for row in values if row["front"]], axis.sign, 1),
            ([row for row in values if not row["front"]], -axis.sign, -1),
        )
        if (names := _names(each))
    ]
    layers = line, intervals.encode(color=marks.colour), points.encode(color=marks.colour), *labels
    return alt.layer(*layers).properties(title=title, width=WIDTH, height=HEIGHT)


def _by_kind(channel: Any, measure: str, *looks: Any) -> Any:
    scale = alt.Scale(type="ordinal", domain=list(KINDS), range=list(looks))
    legend = alt.Legend(title=None, symbolFillColor=INK, symbolStrokeWidth=0)
    return channel(field="kind", type=measure, scale=scale, legend=legend)


def _names(values: Sequence[Row]) -> list[Row]:
    """The names of the runs at each place of a chart, unless they are too many to be read."""
    places: dict[tuple[float, float], list[str]] = {}
    for row in values:
        if row["run"]:
            places.setdefault((row["amount"], row["top1"]), []).append(row["run"])
    if len(places) > LABELLED:
        return []
    return [{"amount": x, "top1": y, "run": names[0], "names": ", ".join(names)} for (x, y), names in places.items()]
