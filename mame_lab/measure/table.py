"""Tables for the terminal, all of one look."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text


def results_table(title: str, headers: Sequence[str], caption: str = "", no_wrap: bool = False) -> Table:
    """A table without rows yet; the caption is taken as it is, with its brackets."""
    table = Table(
        title=title,
        caption=Text(caption) if caption else None,
        caption_justify="left",
        box=box.HORIZONTALS,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for header in headers:
        table.add_column(header, no_wrap=no_wrap)
    return table


def number(x: float, separator: str = "") -> str:
    """At least three digits, never an exponent; `separator` stands between thousands."""
    decimals = 2 - math.floor(math.log10(x)) if x > 0 else 0
    return f"{x:{separator}.{max(0, decimals)}f}"
