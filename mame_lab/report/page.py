"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import altair as alt
import jinja2
import vl_convert

from mame_lab.report.conditions import conditions
from mame_lab.report.numbers import COLUMNS, numbers
from mame_lab.report.pareto import AXES, models, optimal
from mame_lab.report.runs import Run, common, differing

TITLE = "Token merging: accuracy against speed and cost"
EMBED = {
    "renderer": "svg",
    "actions": {"export": True, "source": False, "compiled": False, "editor": False},
}
TEMPLATE = Path(__file__).with_name("page.html")


def html(runs: Sequence[Run], charts: alt.VConcatChart) -> str:
    """The page: conditions, charts, and a table of all runs. All that comes from files is escaped."""
    drawn, overrides = models(runs), [run.overrides for run in runs]
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    return template.render(
        title=TITLE,
        count=count(runs),
        conditions=common(_conditions(runs)),
        differences=differences(runs),
        same_overrides=common(overrides),
        keys=differing(overrides),
        columns=COLUMNS,
        runs=runs,
        numbers={model.runs[0].name: numbers(model) for model in drawn if model.merged},
        best={axis.name: [m.runs[0].name for m in optimal(drawn, axis) if m.merged] for axis in AXES},
        bundle=vl_convert.javascript_bundle(),
        spec=charts.to_dict(),
        embed=EMBED,
    )


def count(runs: Sequence[Run]) -> str:
    """How many runs there are, and how they ended."""
    ended = Counter(run.status for run in runs)
    said = ", ".join(f"{ended[status]} {status}" for status in ("finished", "failed", "unfinished") if ended[status])
    return f"{len(runs)} run{'s' * (len(runs) > 1)}: {said}"


def measured(runs: Sequence[Run]) -> str:
    """The conditions that all results hold for."""
    return ", ".join(f"{name} {value}" for name, value in common(_conditions(runs)).items())


def differences(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """The conditions that results differ in, beside the model: the runs by value, by condition."""
    finished = [run for run in runs if run.result]
    stated = _conditions(runs)
    found: dict[str, dict[str, list[str]]] = {name: {} for name in differing(stated) if name != "model"}
    for name, values in found.items():
        for run, each in zip(finished, stated, strict=True):
            values.setdefault(each.get(name, "not said"), []).append(run.name)
    return found


def _conditions(runs: Sequence[Run]) -> list[dict[str, str]]:
    return [conditions(run.result) for run in runs if run.result]
