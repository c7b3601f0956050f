"""Progress bars: on a terminal alone, and gone when the work is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")


class _Silent(AbstractContextManager):
    """In the place of a bar where rich is not installed."""

    def __exit__(self, *_: object) -> None: ...

    def add_task(self, *_: Any, **__: Any) -> int:
        return 0

    def refresh(self) -> None: ...

    def update(self, *_: Any, **__: Any) -> None: ...

    def track(self, items: Iterable[Item], **_: Any) -> Iterable[Item]:
        return items


def progress_bar(auto_refresh: bool = True) -> Progress:
    """A bar to add tasks to; without `auto_refresh` no thread draws it."""
    if find_spec("rich") is None:
        return cast("Progress", _Silent())
    from rich.console import Console
    from rich.progress import Progress

    console = Console()
    return Progress(console=console, transient=True, auto_refresh=auto_refresh, disable=not console.is_terminal)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar; `total` is how many there are, where they have no length."""
    with progress_bar() as progress:
        yield from progress.track(items, total=total, description=description)
