"""A method brought to a cost on the images that it is measured on."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mame_lab.benchmarks.frontier.losses import Losses
from mame_lab.merging import Method
from mame_lab.solver.solve import COST_TOLERANCE, solve

# A threshold is looked for on a few of the images, and then mended by what it costs on all of them.
FEW, TRIALS = 32, 3


def solve_for(losses: Losses, target: Method, calibration: Tensor) -> Method:
    """The method with a budget or a threshold in the place of its target.

    Args:
        losses: the model, and the images that an adaptive threshold is solved on, for costs to be equal there.
        target: with `flops` set.
        calibration: other images, that every other schedule is solved on.

    Raises:
        MameLabError: the cost is out of reach.
    """
    if target.solve != "adaptive":
        return solve(losses.model, target, calibration)
    asked, few = target.flops, losses.images[:: -(-len(losses.images) // FEW)]
    assert asked is not None
    share, found = asked, {}
    for _ in range(TRIALS):
        method = solve(losses.model, replace(target, flops=share), few)
        cost = losses.cost(method)
        found[abs(cost - asked)] = method
        if min(found) <= COST_TOLERANCE * asked:
            break
        share = min(share * asked / cost, 0.99)
    return found[min(found)]
