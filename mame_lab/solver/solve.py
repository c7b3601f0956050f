"""The numbers of a schedule that meet a target: a share of the multiply-adds, or a speed-up.

B batch, T targets, S sources.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from mame_lab.errors import MameLabError
from mame_lab.measure.cost import gflops
from mame_lab.merging import Method
from mame_lab.merging.bipartite import Adaptive
from mame_lab.merging.method import check_method
from mame_lab.merging.schedule import Schedule, factors, geometric_blocks, over_blocks
from mame_lab.merging.wrapper import MethodWrapper
from mame_lab.models import apply, family_of, shared_copy, unmerged_copy

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import Tensor, nn

    from mame_lab.merging.plan import MergePlan
    from mame_lab.merging.tokens import Tokens

# What a solved cost and a measured speed-up may be off, relative to the target, and how long to look for them.
COST_TOLERANCE, COST_STEPS = 0.005, 16
CALIBRATION_IMAGES = 16
BELOW_1 = 1 - 2**-24  # The highest threshold above which copies still merge.
SPEED_TOLERANCE, SPEED_TRIALS = 0.03, 5


def solve(model: nn.Module, method: Method, images: Tensor) -> Method:
    """The method with a budget or a threshold in the place of its target.

    Candidates are applied to copies of the model: thresholds and speed-ups are found on all images, the multiply-adds
    of a budget on one.

    Args:
        model: a supported model; it does not change.
        method: with `flops` or `speedup` set; one without a target is returned as it is.
        images: (B, 3, H, W), preprocessed, on the model's device: 16 or more of the kind that the model is for.

    Raises:
        MameLabError: the target is out of reach (the message says how far one can go), or `method` is no method.
    """
    check_method(method)
    if not method.has_target:
        return method
    family_of(model)
    from mame_lab.data.progress import progress_bar

    with progress_bar() as progress:
        search = _Search(unmerged_copy(model).eval(), method, images, progress)
        if method.flops is not None:
            return search.by_cost(method.flops, f"mame.flops={method.flops}")
        assert method.speedup is not None
        return search.by_speed(method.speedup)


class _Search:
    """Candidates of a strength from 0, where nothing merges, to 1, where all merges that can."""

    def __init__(self, model: nn.Module, method: Method, images: Tensor, progress: Progress) -> None:
        self.model, self.images, self.progress = model, images, progress
        self.schedule = method.schedule or "geometric"
        self.family = family_of(model)
        self.depth = len(self.family.block_names(model))
        self.patches = math.prod(self.family.grid(model, images))
        self.method = method
        unread = {"batching": "per_sample"} if isinstance(method, Adaptive) else {}
        self.plain = replace(method, flops=None, speedup=None, schedule=None, solve=None, blocks=None, r=0, **unread)
        self.unmerged_gflops = gflops(model, images)

    def by_cost(self, share: float, asked: str) -> Method:
        """The candidate that costs this share of the unmerged model's multiply-adds."""
        self.blocks = self._blocks(share)
        found = self.candidate(1.0)
        low, high = (0.0, 1 - share), (1.0, self.cost(found) - share)
        if high[1] > 0:
            raise MameLabError(
                f"{asked} is out of reach: with mame.schedule={self.schedule} at least {share + high[1]:.3f} of the "
                f"multiply-adds remain; ask for less merging, or take another schedule or more blocks"
            )
        off = -high[1]
        for step in self.progress.track(range(COST_STEPS), description=f"solving {asked}"):
            if off <= COST_TOLERANCE * share:
                break
            candidate = self.candidate(strength := _between(low, high, step))
            excess = self.cost(candidate) - share
            if abs(excess) < off:
                found, off = candidate, abs(excess)
            low, high = ((strength, excess), high) if excess > 0 else (low, (strength, excess))
        return found

    def by_speed(self, speedup: float) -> Method:
        """The candidate that runs so many times faster than the unmerged model: guesses its cost, and mends it."""
        share, found, off = 1 / speedup, self.plain, float("inf")
        for _ in range(SPEED_TRIALS):
            candidate = self.by_cost(share, f"mame.speedup={speedup}")
            measured = self.speedup(candidate)
            if abs(measured - speedup) < off:
                found, off = candidate, abs(measured - speedup)
            if off <= SPEED_TOLERANCE * speedup:
                break
            share = min(share * measured / speedup, 0.99)
        return found

    def candidate(self, strength: float) -> Method:
        """The method with a list of the tokens that are removed in each block, or of thresholds."""
        amounts = self._amounts(strength)
        plain = replace(self.plain, r=amounts)
        if not isinstance(self.method, Adaptive) or self.method.solve != "adaptive":
            return plain
        assert isinstance(plain, Adaptive)
        return replace(plain, r=None, tau=self._thresholds(plain), batching=self.method.batching)

    def cost(self, method: Method) -> float:
        """The share of the unmerged model's multiply-adds."""
        return gflops(apply(shared_copy(self.model), method), self.images) / self.unmerged_gflops

    def speedup(self, method: Method) -> float:
        """How many times faster than the unmerged model it runs on the images."""
        import torch

        from mame_lab.measure import speed

        models = {"merged": apply(shared_copy(self.model), method), "unmerged": self.model}
        with torch.inference_mode():
            calls = {name: partial(model, self.images) for name, model in models.items()}
            taken = speed.time_interleaved(calls, self.images.device, max_rounds=15, seconds=5.0)
        return speed.speedup(taken["merged"], taken["unmerged"])

    def _blocks(self, share: float) -> list[int]:
        if self.method.blocks is None and self.schedule == "geometric":
            return geometric_blocks(self.depth, share)
        return self.method.merging_blocks(self.depth)

    def _amounts(self, strength: float) -> list[int]:
        """The tokens that are removed in each block."""
        blocks = range(1, len(self.blocks) + 1)
        if self.schedule == "geometric":
            totals = [self.patches * (1 - (1 - strength / 2) ** block) for block in blocks]
        else:
            shares = factors(self.schedule, len(self.blocks))
            totals = list(accumulate(strength**2 * self.patches * share for share in shares))
        amounts = [int(after) - int(before) for before, after in pairwise((0, *totals))]
        schedule = Schedule(over_blocks(amounts, self.blocks, self.depth), clamp=True, pairs=self.plain.pairs)
        return [amount or 0 for amount in schedule.walk(self.patches)]

    def _thresholds(self, method: Adaptive) -> list[float]:
        """The threshold of each block by which as many tokens of the images are removed on average as by a budget."""
        import torch

        pooled = _Pooled(replace(method, clamp=True))
        with torch.inference_mode():
            apply(shared_copy(self.model), pooled)(self.images)
        found = iter(pooled.taus)
        return [next(found) if amount else 1.0 for amount in method.r]


def _between(low: tuple[float, float], high: tuple[float, float], step: int) -> float:
    """Where a line through two (strength, excess cost) crosses 0; the middle at every third step, for safety."""
    if step % 3 == 2:
        return (low[0] + high[0]) / 2
    return low[0] + (high[0] - low[0]) * low[1] / (low[1] - high[1])


class _Pooled(MethodWrapper[Adaptive]):
    """Removes as many tokens from the whole batch as the budget says, those of all samples that are closest.

    Attributes:
        taus: the thresholds at which that happened, block by block.
    """

    def __init__(self, base: Adaptive) -> None:
        super().__init__(base)
        self.taus: list[float] = []

    def plan(self, tokens: Tokens, r: int | None) -> MergePlan:
        from mame_lab.merging import matching

        assert r is not None
        similarity_BTS = matching.without_padding(self.base.similarity(tokens), tokens)
        best = similarity_BTS.amax(1).flatten().sort(descending=True).values
        least = self.base.tau_at(float(best[min(len(tokens.x_BNC) * r, len(best) - 1)]))
        self.taus.append(min(max(least, -1.0), BELOW_1))
        return replace(self.base, r=None, clamp=False, tau=self.taus[-1]).plan(tokens, None)
