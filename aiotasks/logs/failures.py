"""The text of a stored error in the log: its last words, and the place in the site's code that it is from."""

import os
import re
import sys
from pathlib import PurePath
from textwrap import indent

from .formats import printable

__all__ = ["indented", "last_words", "own_frame"]

# Characters of an error's message in a line.
MESSAGE_LIMIT = 1000

# Never across the end of a line: over blank lines that would take time with the square of their number.
_FRAME = re.compile(r'^[ \t|]*File "(.+)", line (\d+), in (.+)$', re.MULTILINE)

# Where installed packages are: pip's, and Debian's.
_INSTALLED = {"site-packages", "dist-packages"}

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_STANDARD_LIBRARY = os.path.dirname(os.path.abspath(os.__file__))


def last_words(kind: str, traceback: str) -> str:
    """Return the end of a traceback, from the class of its error on, at most 1000 characters.

    ``kind``: the full path of that class.
    """
    lines = traceback.rstrip("\n")
    name = kind.removeprefix("builtins.").removeprefix("__main__.")
    # The second form is an exception group's, whose other errors follow.
    for before, end in (("\n", None), ("\n  | ", "\n")):
        if (start := lines.rfind(before + name)) >= 0:
            start += len(before)
            return lines[start : None if end is None else lines.find(end, start)][:MESSAGE_LIMIT]
    if not lines.startswith(name):  # otherwise it was never raised, as the error of a thread that goes on
        lines = lines[lines.rfind("\n") + 1 :]
    return lines[:MESSAGE_LIMIT]


def indented(traceback: str) -> str:
    """Return the traceback for lines of its own: indented and without control characters, so that no part of
    it looks like another record.
    """
    return indent(printable(traceback.rstrip("\n"), lines=True), "  ")


def own_frame(traceback: str, task_path: str) -> str | None:
    """Return the last frame of the site's own code: ``shop/cards.py:41 in charge``.

    Its own are frames outside of the standard library, of installed packages and of aiotasks; and those of
    the task's package, wherever it is. Where there is none, the last frame of all; None where there is no
    frame, as in an error that was never raised.
    """
    frames = _FRAME.findall(traceback)
    if not frames:
        return None
    package = PurePath(*task_path.split(".")[:-2])
    path, line, function = next(
        (frame for frame in reversed(frames) if _is_own(frame[0], package)), frames[-1]
    )
    return printable(f"{_relative(path, *_folders())}:{line} in {function}")


def _is_own(path: str, package: PurePath) -> bool:
    if path.startswith("<"):  # compiled from a string, as a dataclass's methods are
        return False
    parts = PurePath(path).parts
    if package.parts and PurePath(_relative(path, *_folders())).is_relative_to(package):
        return True
    return not (
        _INSTALLED.intersection(parts) or path.startswith((_STANDARD_LIBRARY + os.sep, _PACKAGE + os.sep))
    )


def _folders() -> tuple[str, ...]:
    """The folders that modules are imported from."""
    # Some sites append a pathlib.Path, which imports pass over in silence.
    return tuple(entry for entry in sys.path if isinstance(entry, str) and os.path.isabs(entry))


def _relative(path: str, *folders: str) -> str:
    longest = max(
        (one for one in folders if path.startswith(one.rstrip(os.sep) + os.sep)), key=len, default=""
    )
    return path[len(longest) :].lstrip(os.sep) if longest else path
