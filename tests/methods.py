"""The methods that every contract is tested on, made from `METHODS`: a new one is tested by being named there."""

from mame_lab.merging import METHODS
from mame_lab.merging.method import GridMethod, SequenceMethod

SEQUENCE = {name: each for name, each in METHODS.items() if issubclass(each, SequenceMethod)}
GRID = {name: each for name, each in METHODS.items() if issubclass(each, GridMethod)}


def budgets(r: object, **settings) -> dict[str, SequenceMethod]:
    """All methods for vision transformers with a budget."""
    return {name: each(r=r, **settings) for name, each in SEQUENCE.items()}


def thresholds(tau: float, said: str = "adaptive", **settings) -> dict[str, SequenceMethod]:
    """Those that have a threshold, with one."""
    return {f"{name}, {said}": each(tau=tau, **settings) for name, each in SEQUENCE.items() if each.has_threshold}


def in_blocks(methods: dict[str, SequenceMethod], depth: int = 12) -> dict[str, SequenceMethod]:
    """The methods as a block at the front has them, and those that differ there as the last one has them."""
    first, last = ({name: each.for_block(block, depth) for name, each in methods.items()} for block in (0, depth - 1))
    return first | {f"{name}, last block": each for name, each in last.items() if vars(each) != vars(first[name])}


def keeping(contract: str, methods: dict[str, SequenceMethod]) -> dict[str, SequenceMethod]:
    """Those that do not give up a contract."""
    return {name: each for name, each in methods.items() if contract not in each.gives_up}


def not_random(methods: dict[str, SequenceMethod]) -> dict[str, SequenceMethod]:
    """Those that draw nothing."""
    return {name: each for name, each in methods.items() if not each.random}
