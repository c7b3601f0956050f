"""What every benchmark shares."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass
class Benchmark:
    """The `benchmark` group of the configuration: the settings of one, in `settings.py` of its folder.

    Args:
        name: which benchmark it is, a key of `mame_lab.benchmarks.BENCHMARKS` and the name of its folder.

    Attributes:
        complete: whether it brings its own models and data.
        unread: the groups of the configuration that say nothing to it, for it has settings of its own.
    """

    name: str

    complete: ClassVar[bool] = False
    unread: ClassVar[tuple[str, ...]] = ("mame", "speed")
