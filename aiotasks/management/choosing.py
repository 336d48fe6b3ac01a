"""The options by which commands choose tasks: the fields of a filter."""

from argparse import ArgumentParser, Namespace

from aiotasks.filters import TaskFilter
from aiotasks.management.usage import UsageError
from aiotasks.operations.filters import read_filter

__all__ = ["add_filters", "filter_of"]

# Each with the word for its value, and its help.
_OPTIONS = {
    "queue": ("NAME", "of this queue"),
    "task": ("PATH", "of the task at this path, such as shop.tasks.charge"),
    "status": ("STATUS", "SCHEDULED, READY, RUNNING, SUCCESSFUL or FAILED; several with commas"),
    "key": ("KEY", "the task with this unique key"),
    "error": ("CLASS", "whose last error is of this class, such as ValueError"),
    "worker": ("ID", "whose last execution is, or was, with this worker"),
    "since": ("TIME", "from this time on, such as 2026-11-29T14:00, or an age such as 90m, 36h, 7d"),
    "until": ("TIME", "before this time"),
}


def add_filters(parser: ArgumentParser, *, times: str) -> None:
    """Add the options. ``times``: what --since and --until are about, for people."""
    group = parser.add_argument_group("filters", f"All that are given must apply. {times}")
    for name, (metavar, help) in _OPTIONS.items():
        group.add_argument(f"--{name}", metavar=metavar, help=help)


def filter_of(options: Namespace, *, ends: bool = False) -> TaskFilter:
    """Return the filter that is given. ``ends``: see ``read_filter``. Raises UsageError."""
    given = {name: getattr(options, name) for name in _OPTIONS}
    if empty := [name for name, text in given.items() if text == ""]:
        # Left out, it would mean more tasks: a script's variable that isn't set must not delete them.
        raise UsageError(f"--{empty[0]} is empty: give a value, or leave the option out.")
    try:
        return read_filter(ends=ends, **given)
    except ValueError as error:
        text = str(error)
        raise UsageError(f"--{text}" if text.split()[0] in _OPTIONS else text) from None
