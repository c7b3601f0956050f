"""What the charts are drawn from: the run of each model, its group (which has a colour), the texts of its tooltip."""

from __future__ import annotations

from collections.abc import Sequence

from mame_lab.report.numbers import ABSENT, numbers
from mame_lab.report.pareto import Model
from mame_lab.report.runs import common
from mame_lab.report.style import Row


def describe(models: Sequence[Model], keys: Sequence[str]) -> list[Row]:
    """A row for each model. It is in the group of its name, or where all names are the same, of its method.

    Args:
        models: merged and unmerged.
        keys: of the overrides that are told.
    """
    names = [str(model.result.conditions.more.get("model", ABSENT)) for model in models]
    by_name = len(set(names)) > 1
    rows = []
    for model, name in zip(models, names, strict=True):
        asked = common([run.overrides for run in model.runs])
        texts = [_heading(model), *(asked.get(key, ABSENT) for key in keys), *numbers(model).values()]
        group = name if by_name else _method(model)
        run = model.runs[0].name if model.merged else ""
        rows.append({"run": run, "group": group} | {f"text{i}": text for i, text in enumerate(texts)})
    return rows


def _method(model: Model) -> str:
    merging = str(model.result.conditions.more.get("merging", ABSENT))
    return merging.partition("(")[0] if model.merged else ""


def _heading(model: Model) -> str:
    names = ", ".join(run.name for run in model.runs[:8]) + ", ..." * (len(model.runs) > 8)
    return f"run {names}" if model.merged else f"unmerged, in run {names}"
