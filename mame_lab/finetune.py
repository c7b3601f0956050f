"""Which parameters train: patterns over module names. All else is frozen and acts as in evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from mame_lab.errors import MameLabError

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn


@dataclass
class Finetune:
    """What trains.

    Args:
        name: what to call the choice.
        train: regular expressions, each matched against the full names of modules; what matches trains, with all below
            it. A numbered child also answers to its index from the end: `blocks.-1` is the last block. None: all.
    """

    name: str
    train: list[str] | None = None


@dataclass(frozen=True)
class Trained:
    """What one pattern matched: the outermost modules, and how many parameters (scalars) they hold."""

    pattern: str
    modules: list[str]
    parameters: int


@dataclass(frozen=True)
class Summary:
    """A row for each pattern, and how many parameters (scalars) train of how many there are."""

    rows: list[Trained]
    trained: int
    total: int


def freeze(model: nn.Module, settings: Finetune, thresholds: bool = False) -> Summary:
    """Lets what `settings` names train, and freezes the rest of `model`.

    What is frozen takes no gradient and stays in eval mode: no dropout, no drop path, no update of norm statistics.
    Lightning's `fit` leaves these modes alone.

    Args:
        model: see above.
        settings: see above.
        thresholds: whether merging thresholds train besides, so that no module need.

    Raises:
        MameLabError: a pattern matches no parameter or is no regular expression, or nothing trains. The model is
            unchanged then.
    """
    patterns = [".*"] if settings.train is None else settings.train
    if not patterns and not thresholds:
        raise MameLabError(
            "finetune.train=[] trains nothing: name modules, give null to train everything, or learn thresholds with "
            "mame.schedule=learned"
        )
    matches = {pattern: _match(model, pattern) for pattern in patterns}
    model.eval().requires_grad_(False)
    for modules in matches.values():
        for module in modules.values():
            module.train().requires_grad_(True)
    rows = [Trained(pattern, list(modules), _count(modules.values())) for pattern, modules in matches.items()]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Summary(rows, trained, _count([model]))


def check_new_head(settings: Finetune) -> None:
    """Raise MameLabError where nothing trains and the head is one of random weights."""
    if settings.train == []:
        raise MameLabError(
            f"finetune={settings.name} trains no weight, and the head is new: give weights with a head for these "
            f"classes, or train it with finetune=head"
        )


def table(summary: Summary) -> Table:
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


def _match(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    try:
        matches = dict(_outermost(model, re.compile(pattern)))
    except re.error as error:
        raise MameLabError(f"finetune.train={pattern} is not a regular expression ({error}): correct it") from error
    if _count(matches.values()) == 0:
        names = [name for name, _ in model.named_modules() if name]
        near = get_close_matches(pattern, names) or [name for name, _ in model.named_children()]
        raise MameLabError(f"finetune.train={pattern} matches no parameter: name a module such as {', '.join(near)}")
    return matches


def _outermost(module: nn.Module, pattern: re.Pattern, names: Sequence[str] = ("",)) -> Iterator[tuple[str, nn.Module]]:
    """The modules that `pattern` matches, none inside another. `module` answers to `names`, the true one first."""
    if any(pattern.fullmatch(name) for name in names):
        yield names[0], module
        return
    children = dict(module.named_children())
    for key, child in children.items():
        keys = [key, str(int(key) - len(children))] if key.isdigit() else [key]
        yield from _outermost(child, pattern, [f"{name}.{k}".removeprefix(".") for name in names for k in keys])


def _count(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.numel() for parameter in {p for module in modules for p in module.parameters()})
