"""``--watch``: an answer again and again, in place of the one before where it is a terminal's."""

import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from contextlib import suppress

from django.core.management.base import CommandError
from django.utils import timezone

from aiotasks.management.output import Output
from aiotasks.operations.tables import Part

__all__ = ["add_watch", "watch"]

# Seconds between two answers if nothing else is asked for, and the bounds of what may be.
INTERVAL = 2.0
SHORTEST_INTERVAL = 0.1
LONGEST_INTERVAL = 3_600.0


def add_watch(parser: ArgumentParser) -> None:
    """Add the option for an answer again and again."""
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=INTERVAL,
        metavar="SECONDS",
        help=f"show it again every so many seconds ({INTERVAL:g}) until Ctrl-C",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not SHORTEST_INTERVAL <= seconds <= LONGEST_INTERVAL:
        raise ArgumentTypeError(
            f"{text!r} isn't a number of seconds from {SHORTEST_INTERVAL:g} to {LONGEST_INTERVAL:g}"
        )
    return seconds


def watch[Answer](
    read: Callable[[], Answer],
    parts_of: Callable[[Answer], Sequence[Part]],
    output: Output,
    *,
    seconds: float,
    json: bool,
) -> None:
    """Show an answer every ``seconds`` until an interrupt, with JSON one in a line.

    An answer that can't be read is a remark, with the last one below it, because an outage is what people
    watch; the first one raises its CommandError.
    """
    answer = read()
    with suppress(KeyboardInterrupt), output.screen() as show:
        trouble: str | None = None
        while True:
            if json and trouble is None:
                output.json(answer, line=True)
            elif json:
                output.note(f"{trouble} Trying again.")
            else:
                when = f"{timezone.localtime():%Y-%m-%d %H:%M:%S}, every {seconds:g} s until Ctrl-C"
                remarks = [] if trouble is None else [f"{trouble} Trying again; this is the last answer:"]
                show(when, *remarks, *parts_of(answer))
            time.sleep(seconds)
            try:
                answer, trouble = read(), None
            except CommandError as error:
                trouble = str(error)
