"""What all charts have in common: colours, sizes, tooltips, and the run that is pointed at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
from altair.typing import ChartType

FONT = "Helvetica, Arial, sans-serif"
INK, FAINT, LINE = "#1f2933", "#7b8794", "#cbd2d9"
DASHES = [[1, 0], [8, 6], [3, 3], [12, 3, 3, 3]]  # lines of several colours that coincide show all of them
LABELLED = 16  # names in a chart, at most

HOVER = alt.selection_point(name="hover", fields=["run"], on="pointerover", clear="pointerout")

Row = dict[str, Any]


class Marks:
    """The encodings that marks of all charts share.

    Args:
        rows: see `rows.describe`.
        told: titles of the texts of a tooltip.
    """

    def __init__(self, rows: Sequence[Row], told: Sequence[str]) -> None:
        self.opacity = alt.when(HOVER).then(alt.value(1)).otherwise(alt.value(0.12))
        self.tooltip = [alt.Tooltip(field=f"text{i}", type="nominal", title=title) for i, title in enumerate(told)]
        groups = list(dict.fromkeys(row["group"] for row in rows if row["group"]))
        colours = alt.Scale(domain=groups, scheme="tableau10" if len(groups) <= 10 else "tableau20")
        legend = alt.Legend(title=None, symbolType="square", symbolStrokeWidth=0)
        colour = alt.Color("group:N", scale=colours, legend=legend)
        self.colour = alt.when(alt.datum.group == "").then(alt.value(INK)).otherwise(colour)
        self.dash = alt.StrokeDash("group:N", scale=alt.Scale(domain=groups, range=DASHES), legend=legend)


def nothing(text: str, width: int, height: int) -> ChartType:
    """In the place of a chart."""
    return alt.layer(alt.Chart().mark_text(text=text, fontSize=15, color=FAINT), width=width, height=height)
