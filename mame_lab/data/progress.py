"""Progress bars: on a terminal alone, and gone when the work is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

Item = TypeVar("Item")


def progress_bar(auto_refresh: bool = True) -> Progress:
    """A bar to add tasks to; without `auto_refresh` no thread draws it."""
    console = Console()
    return Progress(console=console, transient=True, auto_refresh=auto_refresh, disable=not console.is_terminal)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar; `total` is how many there are, where they have no length."""
    with progress_bar() as progress:
        yield from progress.track(items, total=total, description=description)
