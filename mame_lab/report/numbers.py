"""The numbers of a model as the table and the tooltips show them."""

from __future__ import annotations

from mame_lab.measure.metrics import METRICS
from mame_lab.measure.proportion import Proportion, percent
from mame_lab.measure.table import number
from mame_lab.report.pareto import Model

ABSENT = "-"
TOP1, *OTHERS = METRICS
COLUMNS = (
    METRICS[TOP1].title,
    "change",
    "speed-up",
    "samples/s",
    "GFLOPs",
    "tokens at the end",
    *(METRICS[name].title for name in OTHERS),
)


def numbers(model: Model) -> dict[str, str]:
    """One text for each of COLUMNS."""
    change, speedup = model.result.top1_change, model.result.speedup
    texts = (
        _text(model.arm.scores.get(TOP1)),
        str(change) if model.merged and change else ABSENT,
        f"{speedup:.2f}x" if model.merged and speedup is not None else ABSENT,
        number(model.arm.samples_per_s, ","),
        number(model.arm.gflops, ","),
        f"{model.arm.tokens[-1]:.0f} of {model.result.unmerged.tokens[0]:.0f}",
        *(_text(model.arm.scores.get(name)) for name in OTHERS),
    )
    return dict(zip(COLUMNS, texts, strict=True))


def _text(score: Proportion | float | None) -> str:
    if score is None:
        return ABSENT
    return str(score) if isinstance(score, Proportion) else percent(score)
