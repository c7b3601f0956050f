"""All charts in one, where pointing at a run shows it everywhere: accuracy against speed and FLOPs, tokens by block."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from textwrap import wrap
from warnings import catch_warnings, filterwarnings

import altair as alt

from mame_lab.report import tokens, tradeoff
from mame_lab.report.numbers import COLUMNS
from mame_lab.report.pareto import AXES, models
from mame_lab.report.rows import describe
from mame_lab.report.runs import Run, telling
from mame_lab.report.style import FAINT, FONT, INK, LINE, Marks

_AXIS = {
    "gridColor": "#edf0f3",
    "domainColor": LINE,
    "tickColor": LINE,
    "tickCount": 6,
    "labelColor": FAINT,
    "labelFontSize": 12,
    "titleColor": INK,
    "titleFontSize": 13,
    "titleFontWeight": "normal",
    "titlePadding": 10,
}


def draw(runs: Sequence[Run]) -> alt.VConcatChart:
    """All charts of the runs; one that nothing was measured for says so."""
    drawn, keys = models(runs), telling(runs)
    rows = describe(drawn, keys)
    marks = Marks(rows, ["title", *keys, *COLUMNS])
    with catch_warnings():  # One selection in all charts is what links them.
        filterwarnings("ignore", "Automatically deduplicated selection parameter")
        tradeoffs = alt.hconcat(*(tradeoff.chart(drawn, rows, axis, marks) for axis in AXES), spacing=40)
        charts = alt.vconcat(tradeoffs, tokens.chart(drawn, rows, marks), spacing=32)
    return (
        charts.configure(font=FONT, background="white")
        .configure_view(stroke=None)
        .configure_axis(**_AXIS)
        .configure_axisY(minExtent=32)
        .configure_title(fontSize=15, color=INK, anchor="start", frame="group", offset=14)
        .configure_legend(orient="top", labelFontSize=13, labelColor=INK, columnPadding=18, padding=9, offset=8)
    )


def png(charts: alt.VConcatChart, title: str, subtitles: list[str]) -> bytes:
    """The charts as a picture, under a title."""
    lines = [line for subtitle in subtitles for line in wrap(subtitle, 170)]
    heading = alt.TitleParams(title, subtitle=lines, fontSize=20, subtitleFontSize=13, subtitleColor=FAINT)
    file = BytesIO()
    charts.properties(title=heading, padding=24).save(file, format="png", scale_factor=2)
    return file.getvalue()
