"""Make the report of runs again, from any folders.

python -m mame_lab.report RUNS... [--out FOLDER]
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from mame_lab.data.paths import given_path
from mame_lab.errors import MameLabError
from mame_lab.report import make


def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(
        "python -m mame_lab.report", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUNS", type=given_path, nargs="+", help="folders of runs or of sweeps")
    parser.add_argument("--out", metavar="FOLDER", type=given_path, help="of the report; else the first of RUNS")
    given = parser.parse_args(arguments)
    try:
        print(f"Written to {make(given.runs, given.out or given.runs[0])}")
    except MameLabError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
