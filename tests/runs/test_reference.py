"""conf/README.md is what the docstrings say, of every key."""

from commands import ROOT

from mame_lab.runs.reference import reference


def test_it_is_what_the_command_gives():
    made = (ROOT / "conf/README.md").read_text()
    assert made == reference(), "python -m mame_lab.runs.reference > conf/README.md"


def test_every_key_has_a_meaning():
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert not [row for row in rows if row.endswith("|  |") or "|  (" in row]
    assert any(row.startswith("| `mame.grid.window` | int | `16` | side of a window") for row in rows)
    assert any(row.startswith("| `resume` | str \\| None | `null` | go on from a checkpoint") for row in rows)
