"""Text files that a user gives: prompts, lists of videos, names of classes."""

from __future__ import annotations

import codecs
from pathlib import Path

from mame_lab.errors import MameLabError

MARK = "\ufeff"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_lines(path: Path, named: str | None = None) -> list[str]:
    """The lines of a file in UTF-8, or in UTF-16 as its byte-order mark says.

    Marks at the start of a line, which files that were joined have inside, are no part of it.

    Args:
        path: of the file.
        named: what to call it in a message instead.

    Raises:
        MameLabError: it cannot be read, or is no such text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MameLabError(f"{named or path} cannot be read ({error.strerror}): give a text file") from error
    encoding = "utf-16" if content.startswith(UTF_16) else "utf-8"
    try:
        text = content.decode(encoding)
        if "\0" in text:
            raise UnicodeDecodeError(encoding, content, content.index(0), content.index(0) + 1, "no text holds a NUL")
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise MameLabError(f"{named or path}, line {line}, is no text in UTF-8: save the file as UTF-8") from error
    return [line.lstrip(MARK) for line in text.splitlines()]


def read_names(path: Path) -> list[str]:
    """A name from each line, without the blanks around it; blank lines at the end are none. Raises as `read_lines`."""
    names = [line.strip() for line in read_lines(path)]
    while names and not names[-1]:
        names.pop()
    return names
