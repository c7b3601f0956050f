"""The arms of the frontier, by name."""

from __future__ import annotations

from typing import Any

from mame_lab.benchmarks.frontier.variants import VARIANTS
from mame_lab.errors import MameLabError
from mame_lab.merging import METHODS, Method

ARMED = METHODS | VARIANTS
REFERENCE = "tome:constant"  # What all others are compared with.
ARMS = (
    "ward:adaptive",
    "ward:geometric",
    "ward:constant",
    "mame:adaptive",
    "mame:constant",
    "tome:geometric",
    "tome:diffrate",
    "tome_two_thirds:constant",
    "pitome:constant",
    "pitome:constant:unweighted",
    "tofu:constant",
    "tofu:constant:unweighted",
    "mctf:constant",
    "atc:constant",
    "atc_everywhere:constant",
    "evit:constant",
    "evit:constant:unweighted",
    "evit_everywhere:constant",
    "drop:constant",
)


def method_of(arm: str, flops: float) -> Method:
    """The method of an arm with a cost as its target.

    Args:
        arm: METHOD:SCHEDULE, a method or one of `variants.VARIANTS` and a schedule, or `adaptive` for thresholds by a
            geometric one; or METHOD:SCHEDULE:unweighted, in which attention is not proportional, as some methods are
            published.
        flops: see `Method`.

    Raises:
        MameLabError: it has another form, or there is no such method or schedule.
    """
    name, schedule, weighting = (*arm.split(":", 2), "", "")[:3]
    if name not in ARMED or not schedule or weighting not in ("", "unweighted"):
        raise MameLabError(
            f"benchmark.arms={arm} is not valid: write METHOD:SCHEDULE or METHOD:SCHEDULE:unweighted with a method of "
            f"{', '.join(ARMED)}"
        )
    options: dict[str, Any] = {"prop_attn": False} if weighting else {}
    options |= {"solve": schedule} if schedule == "adaptive" else {"schedule": schedule}
    try:
        return ARMED[name](flops=flops, **options)
    except MameLabError as error:
        raise MameLabError(f"benchmark.arms={arm} is not valid: {error}") from error
