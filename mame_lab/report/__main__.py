"""Make the report of runs again, from any folders.

python -m mame_lab.report RUNS... [--out FOLDER]
"""

import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from pathlib import Path

from mame_lab.errors import MameLabError
from mame_lab.report import make


def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(
        "python -m mame_lab.report", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUNS", type=_folder, nargs="+", help="folders of runs or of sweeps")
    parser.add_argument("--out", metavar="FOLDER", type=_folder, help="where the report goes; else the first of RUNS")
    said = parser.parse_args(arguments)
    try:
        print(f"Written to {make(said.runs, said.out or said.runs[0])}")
    except MameLabError as error:
        sys.exit(f"error: {error}")


def _folder(argument: str) -> Path:
    """The type of a folder for argparse: an empty path, which an unset variable of the shell leaves, is none."""
    if not argument.strip():
        raise ArgumentTypeError(f"'{argument}' is empty: give a folder")
    return Path(argument)


if __name__ == "__main__":
    main()
