"""Paths that a user gives: an empty one, which an unset variable of the shell leaves, is not the current folder."""

from argparse import ArgumentTypeError
from pathlib import Path

from mame_lab.errors import MameLabError


def refuse_empty(**paths: str | None) -> None:
    """Check paths of the settings of a dataset, by their keys; None is not given.

    Raises:
        MameLabError: one is empty.
    """
    for key, value in paths.items():
        if value is not None and not value.strip():
            raise MameLabError(f"dataset.{key}='{value}' is empty: give a path, or leave the key out")


def given_path(argument: str) -> Path:
    """The type of a path on a command line, for argparse.

    Raises:
        ArgumentTypeError: it is empty.
    """
    if not argument.strip():
        raise ArgumentTypeError(f"'{argument}' is empty: give a folder")
    return Path(argument)
