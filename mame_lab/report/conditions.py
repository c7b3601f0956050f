"""What the numbers of runs hold for."""

from __future__ import annotations

from mame_lab.measure.result import Result

VARIES = {"weights", "date", "rounds", "more", "versions", "merging"}  # from run to run, as it should


def conditions(result: Result) -> dict[str, str]:
    """What must be the same for numbers to be compared, by name."""
    stated = vars(result.conditions)
    named = stated | stated["versions"] | stated["more"] | {"evaluated by": result.evaluated_by}
    return {name: str(value) for name, value in named.items() if name not in VARIES and value is not None}
