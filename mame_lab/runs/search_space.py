"""What Optuna searches: ranges in Hydra's sweep syntax, or how many tokens are removed in each block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mame_lab.errors import MameLabError
from mame_lab.merging.schedule import SHAPES, factors

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from optuna.distributions import BaseDistribution

Parameters = dict[str, Any]

REMOVED = "removed"  # the share of the patch tokens that are removed after the last block
MOST = 0.9
WEIGHTS = 4  # a block has a weight of 0 (it does not merge) to 4; with equal weights the same share is removed in each


class Space(ABC):
    """The parameters of a search."""

    @abstractmethod
    def distributions(self) -> dict[str, BaseDistribution]: ...

    @abstractmethod
    def overrides(self, parameters: Parameters) -> list[str]:
        """The overrides of the run that tries these parameters."""

    def first(self) -> list[Parameters]:
        """What is tried before the sampler proposes anything."""
        return []


@dataclass
class Ranges(Space):
    """Overrides with a choice, a range or an interval each; `tag(log, interval(...))` has a logarithmic scale."""

    said: Sequence[Override]

    def distributions(self) -> dict[str, BaseDistribution]:
        return {override.get_key_element(): _distribution(override) for override in self.said}

    def overrides(self, parameters: Parameters) -> list[str]:
        return [f"{key}={value}" for key, value in parameters.items()]


@dataclass
class Schedules(Space):
    """`mame.r` as a list, one share of the patch tokens for each block: every sample of this space can run.

    The first parameter says how much is merged in all, and a weight for each block how that is shared out: by equal
    shares where the weights are equal. So the search sees all speeds alike from its first trials on.
    """

    blocks: int

    def distributions(self) -> dict[str, BaseDistribution]:
        from optuna.distributions import FloatDistribution, IntDistribution

        weights = {name: IntDistribution(0, WEIGHTS) for name in self._names()}
        return {REMOVED: FloatDistribution(0.0, MOST), **weights}

    def overrides(self, parameters: Parameters) -> list[str]:
        weights = [parameters[name] for name in self._names()]
        staying = [(1 - parameters[REMOVED]) ** (weight / (sum(weights) or 1)) for weight in weights]
        shares = [round(min(1 - share, 0.5), 4) or 0 for share in staying]  # No more than half can be removed.
        return [f"mame.r={shares}".replace(" ", ""), "mame.blocks=null", "mame.schedule=null"]

    def first(self) -> list[Parameters]:
        """The shapes that need no search, at half of the tokens."""
        shapes = [factors(shape, self.blocks) for shape in SHAPES]
        weights = [[min(round(WEIGHTS / 2 * factor), WEIGHTS) for factor in shape] for shape in shapes]
        return [{REMOVED: 0.5, **dict(zip(self._names(), each, strict=True))} for each in weights]

    def unmerged(self) -> Parameters:
        return {REMOVED: 0.0, **dict.fromkeys(self._names(), 0)}

    def _names(self) -> list[str]:
        return [f"block_{block:02d}" for block in range(self.blocks)]


def _distribution(override: Override) -> BaseDistribution:
    from hydra.core.override_parser.types import IntervalSweep, Transformer
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        kind: Any = IntDistribution if whole else FloatDistribution
        try:
            return kind(value.start, value.end, log="log" in value.tags)
        except ValueError as error:
            raise MameLabError(f"{override.input_line}: {error}") from error
    if override.is_range_sweep() and isinstance(numbers := value.range(), range) and len(numbers) > 1:
        return IntDistribution(min(numbers), max(numbers), step=abs(numbers.step))
    choices: Any = list(override.sweep_iterator(Transformer.encode))
    return CategoricalDistribution(choices)
