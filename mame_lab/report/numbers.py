"""The numbers of a model as the table and the tooltips show them."""

from __future__ import annotations

from mame_lab.measure.result_table import number
from mame_lab.report.pareto import Model

ABSENT = "-"
COLUMNS = ("top-1 [95 %]", "change [95 %]", "speed-up", "samples/s", "GFLOPs", "tokens at the end")


def numbers(model: Model) -> dict[str, str]:
    """One text for each of COLUMNS."""
    top1, change, speedup = model.arm.top1, model.result.top1_change, model.result.speedup
    texts = (
        str(top1) if top1 else ABSENT,
        str(change) if model.merged and change else ABSENT,
        f"{speedup:.2f}x" if model.merged and speedup is not None else ABSENT,
        number(model.arm.samples_per_s, ","),
        number(model.arm.gflops, ","),
        f"{model.arm.tokens[-1]:.0f} of {model.result.unmerged.tokens[0]:.0f}",
    )
    return dict(zip(COLUMNS, texts, strict=True))
