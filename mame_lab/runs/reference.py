"""Every group of conf/, its choices and its keys, as the docstrings of the dataclasses have them.

python -m mame_lab.runs.reference > conf/README.md
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from mame_lab.errors import MameLabError
from mame_lab.runs.config import CHOICES, EvalConfig, TrainConfig

CONF = Path(__file__).parents[2] / "conf"
GROUPS = ("model", "mame", "dataset", "finetune", "optim", "trainer", "callbacks", "logger", "speed", "benchmark")
WITHOUT_KEYS = ("experiment", "hydra/sweeper", "hydra/launcher")
INTRODUCTION = """# Every group and key

`python train.py GROUP=CHOICE GROUP.KEY=VALUE` chooses a file of `conf/GROUP/` and overrides its keys.
`--help` lists the groups, and `--cfg job` prints what a command composes.
`finetune`, `optim` and `callbacks` are train.py's, `benchmark` is eval.py's.

Made by `python -m mame_lab.runs.reference > conf/README.md`.
"""


class Row(NamedTuple):
    """A key, as the table shows it."""

    key: str
    type: str
    default: str
    meaning: str


def reference() -> str:
    """The text of conf/README.md."""
    types = get_type_hints(TrainConfig) | get_type_hints(EvalConfig)
    sections = [INTRODUCTION]
    for group in GROUPS:
        chosen, classes = CHOICES.get(group, (None, {"": types[group]}))
        keys = {name: [row for row in rows(group, c) if row.key != f"{group}.{chosen}"] for name, c in classes.items()}
        sections += [f"## {group}\n", _choices(group), _table(keys)]
    entries = {"train.py": TrainConfig, "eval.py": EvalConfig}
    alone = {name: [row for row in rows("", c) if row.key not in GROUPS] for name, c in entries.items()}
    sections += ["## Keys without a group\n", _table(alone)]
    for group in WITHOUT_KEYS:
        sections += [f"## {group}\n", _choices(group)]
    return "\n".join(filter(None, sections))


def rows(prefix: str, cls: Any) -> Iterator[Row]:
    """The keys of a dataclass, those of its parts among them.

    Args:
        prefix: what stands before them, with a dot.
        cls: the dataclass.
    """
    said, types = meanings(cls), get_type_hints(cls)
    for each in fields(cls):
        key = f"{prefix}.{each.name}".removeprefix(".")
        if is_dataclass(types[each.name]) and prefix:
            yield from rows(key, types[each.name])
        else:
            yield Row(key, _type(types[each.name]), _default(each), said.get(each.name, ""))


def meanings(cls: type) -> dict[str, str]:
    """What the `Args` of a dataclass, and of those that it inherits from, say of each key."""
    found = {}
    for each in reversed(cls.__mro__):
        section = re.search(r"^Args:\n((?:    .*\n?|\n)*)", inspect.cleandoc(each.__doc__ or ""), re.MULTILINE)
        entries = re.findall(r"^    ([\w, ]+): ((?:.|\n     )*)", section[1] if section else "", re.MULTILINE)
        for names, meaning in entries:
            found |= {name: _whole(" ".join(meaning.split()), found.get(name, "")) for name in names.split(", ")}
    return found


def _whole(meaning: str, inherited: str) -> str:
    """A meaning in which "see `Class`" is what the class that it inherits from says."""
    return re.sub(r"^see `[A-Z]\w+`[;.] ?(.?)", lambda rest: f"{inherited} {rest[1].upper()}", meaning).strip()


def _type(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _default(each: Field) -> str:
    value = each.default if each.default_factory is MISSING else each.default_factory()
    return "" if value is MISSING or value == "???" else f"`{json.dumps(value, ensure_ascii=False, default=str)}`"


def _choices(group: str) -> str:
    """A line for each file of a group: its first comment."""
    lines = []
    for path in sorted((CONF / group).glob("*.yaml")):
        comments = re.findall(r"^# (?!@package)(.+)$", path.read_text(), re.MULTILINE)
        if not comments:
            raise MameLabError(f"conf/{group}/{path.name} says nothing: begin it with a comment, such as # What it is.")
        lines.append(f"- `{path.stem}`: {comments[0]}\n")
    return "".join(lines)


def _table(of: dict[str, list[Row]]) -> str:
    """The rows of all choices; one that not every choice has says whose it is."""
    table = ["| Key | Type | Default | |", "|---|---|---|---|"]
    for row in dict.fromkeys(row for each in of.values() for row in each):
        owners = [f"`{name}`" for name, each in of.items() if row in each]
        whose = f" ({', '.join(owners)})" if len(owners) < len(of) else ""
        cells = f"`{row.key}`", row.type, row.default, f"{row.meaning}{whose}"
        table.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(table) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
