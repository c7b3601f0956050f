"""Which parameters train: patterns over module names. All else is frozen and acts as in evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from mame_lab.errors import MameLabError
from mame_lab.models import untrained_parameters

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

DTYPES = ("float32", "float16", "bfloat16")
# Stands in for hidden patches in pre-training: nothing uses it here, and DDP would wait for its gradient.
UNUSED = "mask_token"


@dataclass
class FinetuneSettings:
    """What trains, and from what.

    Args:
        name: what to call the choice.
        train: regular expressions, each matched against the full names of modules; what matches trains, with all below
            it. A numbered child also answers to its index from the end: `blocks.-1` is the last block, and each of the
            last `n` to `blocks.-n`. None: all.
        n: how many of the last answer to `-n`, where a pattern counts so.
        distill: weight of the distillation term, from 0 to 1: the KL divergence from the unmerged model of the start
            of the run; cross-entropy with the labels has the rest.
        temperature: of both in that divergence; above 1 the less likely classes count more.
        random_r: values of `mame.r`, numbers or fractions. Every training batch merges by one of them, drawn uniformly,
            in the blocks and by the schedule of `mame`; validation and the result take `mame` as it is. None: training
            does too.
        cache: compute what enters the first trained part once for every sample, keep it on disk (in the folder that
            MAME_LAB_CACHE names), and train from there.
        views: augmented views of every training image that are kept.
        cache_dtype: of the kept tokens, one of `DTYPES`; float32 is exact, the others take half the room.

    Raises:
        MameLabError: a value is out of its range, or has no meaning beside the others.
    """

    name: str
    train: list[str] | None = None
    n: int | None = None
    distill: float = 0.0
    temperature: float = 1.0
    random_r: list[Any] | None = None
    cache: bool = False
    views: int = 1
    cache_dtype: str = DTYPES[0]

    def __post_init__(self) -> None:
        rules = {
            "n": (self.n is None or self.n >= 1, "1 or more"),
            "distill": (0 <= self.distill <= 1, "a value in [0, 1]"),
            "temperature": (self.temperature > 0, "a value above 0"),
            "views": (self.views >= 1, "1 or more"),
            "random_r": (self.random_r != [], "values of mame.r, such as [0, 8], or to null"),
            "cache_dtype": (self.cache_dtype in DTYPES, f"one of {', '.join(DTYPES)}"),
        }
        for key, (holds, rule) in rules.items():
            if not holds:
                raise MameLabError(f"finetune.{key}={getattr(self, key)}: set it to {rule}")
        counting = [pattern for pattern in self.train or () if "-n" in pattern]
        if counting and self.n is None:
            raise MameLabError(f"finetune.train={counting[0]} does not say how many -n are: set finetune.n")
        if self.n is not None and not counting:
            raise MameLabError(
                f"finetune.n={self.n} has no meaning for finetune={self.name}, where no pattern counts by -n: take "
                f"finetune=last_n, or leave it out"
            )

    def check_head(self, trained: bool) -> None:
        """Raise MameLabError where a head is to teach that is not trained."""
        if self.distill and not trained:
            raise MameLabError(
                f"finetune.distill={self.distill} has no teacher, for the weights of the head are random: give "
                f"model.weights=CKPT, the checkpoint of a run that trained it (finetune=head mame=off), or "
                f"leave model.num_classes out"
            )


@dataclass(frozen=True)
class MatchedModules:
    """What one pattern matched: the outermost modules, and how many parameters (scalars) they hold."""

    pattern: str
    modules: list[str]
    parameters: int


@dataclass(frozen=True)
class FreezeSummary:
    """A row for each pattern, and how many parameters (scalars) train of how many there are."""

    rows: list[MatchedModules]
    trained: int
    total: int


def freeze(model: nn.Module, settings: FinetuneSettings) -> FreezeSummary:
    """Lets what `settings` names train, and freezes the rest of `model`.

    What is frozen takes no gradient and stays in eval mode: no dropout, no drop path, no update of norm statistics.
    Lightning's `fit` leaves these modes alone.

    Args:
        model: see above.
        settings: see above.

    Raises:
        MameLabError: a pattern matches no parameter or is no regular expression, nothing trains, or `n` is more than
            there are. The model is unchanged then.
    """
    patterns = [".*"] if settings.train is None else settings.train
    if not patterns:
        raise MameLabError("finetune.train=[] trains nothing: name modules, or give null to train everything")
    matches = {pattern: _match(model, pattern, settings.n or 0) for pattern in patterns}
    model.eval().requires_grad_(False)
    for modules in matches.values():
        for module in modules.values():
            module.train().requires_grad_(True)
    untrained = untrained_parameters(model)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] == UNUSED or name.startswith(untrained):
            parameter.requires_grad_(False)
    rows = [MatchedModules(pattern, list(modules), _count(modules.values())) for pattern, modules in matches.items()]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return FreezeSummary(rows, trained, _count([model]))


def freeze_table(summary: FreezeSummary) -> Table:
    """The summary as a table to print with rich."""
    from rich.markup import escape
    from rich.table import Table

    share = summary.trained / summary.total
    caption = f"trains {summary.trained:,} of {summary.total:,} parameters ({share:.1%})"
    result = Table("finetune.train", "modules", title="What trains", caption=caption, min_width=60)
    result.add_column("parameters", justify="right")
    for row in summary.rows:
        result.add_row(escape(row.pattern), ", ".join(row.modules) or "all", f"{row.parameters:,}")
    return result


def _match(model: nn.Module, pattern: str, n: int) -> dict[str, nn.Module]:
    try:
        matches = _search(model, pattern, n)
    except re.error as error:
        raise MameLabError(f"finetune.train={pattern} is not a regular expression ({error}): correct it") from error
    if _count(matches.values()) == 0:
        names = [name for name, _ in model.named_modules() if name]
        near = get_close_matches(pattern, names) or [name for name, _ in model.named_children()]
        raise MameLabError(f"finetune.train={pattern} matches no parameter: name a module such as {', '.join(near)}")
    if "-n" in pattern and matches == _search(model, pattern, n - 1):
        raise MameLabError(
            f"finetune.n={n} is more than the {len(matches)} modules of finetune.train={pattern}: lower it"
        )
    return matches


def _search(model: nn.Module, pattern: str, n: int) -> dict[str, nn.Module]:
    return dict(_outermost(model, re.compile(pattern), n))


def _outermost(
    module: nn.Module, pattern: re.Pattern, n: int, names: Sequence[str] = ("",)
) -> Iterator[tuple[str, nn.Module]]:
    """The modules that `pattern` matches, none inside another. `module` answers to `names`, the true one first."""
    if any(pattern.fullmatch(name) for name in names):
        yield names[0], module
        return
    children = dict(module.named_children())
    for key, child in children.items():
        keys = [key]
        if key.isdigit():
            from_end = len(children) - int(key)
            keys += [f"-{from_end}", *["-n"] * (from_end <= n)]
        yield from _outermost(child, pattern, n, [f"{name}.{k}".removeprefix(".") for name in names for k in keys])


def _count(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.numel() for parameter in {p for module in modules for p in module.parameters()})
