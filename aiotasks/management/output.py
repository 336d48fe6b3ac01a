"""What commands print: for people at a terminal, into a pipe, or JSON for programs."""

import json
import shutil
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any

from django.core.management.base import CommandError, OutputWrapper
from django.core.serializers.json import DjangoJSONEncoder

from aiotasks.management.usage import UsageError
from aiotasks.operations.tables import WIDTH, Part, as_text

__all__ = ["Output", "OutputFailed", "add_json", "add_yes"]

type Progress = Callable[[int, str], None]


class OutputFailed(CommandError):
    """The answer can't be written, for example because a disk is full."""


def add_json(parser: ArgumentParser, *, default: bool | str = False) -> None:
    """Add the options for how the answer is printed."""
    parser.add_argument("--json", action="store_true", default=default, help="print JSON")
    parser.add_argument(
        "--plain", action="store_true", default=default, help="print no colours, and cut nothing"
    )


def add_yes(parser: ArgumentParser) -> None:
    """Add the option that answers a question beforehand."""
    parser.add_argument("--yes", action="store_true", help="don't ask")


class Output:
    """The output of one command.

    ``options``: of ``json``, ``plain``, ``yes`` and Django's ``no_color`` those that the command has.
    """

    def __init__(self, options: Namespace, stdout: OutputWrapper, stderr: OutputWrapper) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self._json = getattr(options, "json", False)
        self._plain = getattr(options, "plain", False)
        self._yes = getattr(options, "yes", False)
        self._colors = not getattr(options, "no_color", False)
        self._is_first = True

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at it: with ``--plain`` it is written as into a pipe."""
        return self._stdout.isatty() and not self._plain

    @property
    def width(self) -> int | None:
        """The columns of the terminal; None where there is none, and nothing is to be cut."""
        return shutil.get_terminal_size((WIDTH, 24)).columns if self.is_terminal else None

    def show(self, *parts: Part) -> None:
        """Print texts and tables, with an empty line between two."""
        text = self.drawn(*parts)
        self._write(text if self._is_first else f"\n{text}")
        self._is_first = False

    def drawn(self, *parts: Part) -> str:
        """Return what ``show`` prints."""
        if (width := self.width) is None:
            return as_text(parts, width=None)
        if _has_rich() and _is_unicode(self._stdout):
            from aiotasks.management.rich_tables import as_rich

            return as_rich(parts, width=width, colors=self._colors)
        return as_text(parts, width=width)

    def json(self, value: object, *, line: bool = False) -> None:
        """Print JSON; dataclasses are objects, times and ids are as Django writes them.

        line: in a single line, for values that follow each other.
        """
        self._write(json.dumps(value, cls=_Encoder, indent=None if line else 2))

    @contextmanager
    def screen(self) -> Iterator[Callable[..., None]]:
        """Have a terminal's whole screen: the result shows texts and tables in place of those before. Into a
        pipe it is ``show``.
        """
        if not (self.is_terminal and not self._json):
            yield self.show
            return
        before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        # The other screen, without a cursor; what doesn't fit into a line is cut.
        self._write("\x1b[?1049h\x1b[?25l\x1b[?7l", ending="")
        try:
            yield self._redraw
        finally:
            self._write("\x1b[?7h\x1b[?25h\x1b[?1049l", ending="")
            signal.signal(signal.SIGTERM, before)

    def _redraw(self, *parts: Part) -> None:
        lines = self.drawn(*parts).split("\n")
        height = shutil.get_terminal_size((WIDTH, 24)).lines
        if len(lines) > height:
            lines[height - 1 :] = [f"{len(lines) - height + 1} more lines: make the window higher."]
        self._write("\x1b[H" + "\x1b[K\n".join(lines) + "\x1b[K\x1b[J", ending="")

    def _write(self, text: str, *, ending: str = "\n") -> None:
        try:
            self._stdout.write(text, ending=ending)
            self._stdout.flush()  # into a pipe, too: whoever reads it may wait for each answer
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed(f"The answer can't be written: {error.strerror}.") from error

    def note(self, text: str) -> None:
        """Print a remark on stderr, so that it isn't a part of the answer."""
        self._stderr.write(text, str)

    def confirm(self, question: str) -> bool:
        """Return whether a person agrees, or ``--yes`` was given. Raises UsageError where nobody can be
        asked.

        question: with what it is about, as in ``Delete 12 tasks?``
        """
        if self._yes:
            return True
        if sys.stdin is None or not (sys.stdin.isatty() and self._stderr.isatty()):
            raise UsageError(f"{question} Give --yes, because there is no terminal to ask at.")
        self._stderr.write(f"{question} [y/N] ", str, ending="")
        self._stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    @contextmanager
    def progress(self, total: int | None) -> Iterator[Progress]:
        """Show how far it is on stderr, if that is a terminal: call the result with what is done, and a text.

        total: None where it isn't known.
        """
        if not self._stderr.isatty() or self._plain:
            yield lambda done, text: None
        elif _has_rich() and _is_unicode(self._stderr):
            from aiotasks.management.rich_tables import progress

            with progress(total, colors=self._colors) as show:
                yield show
        else:
            of = "" if total is None else f" of {total:,}"
            try:
                yield lambda done, text: self._stderr.write(f"\r{done:,}{of} {text}\x1b[K", str, ending="")
            finally:
                self._stderr.write("\r\x1b[K", str, ending="")


class _Encoder(DjangoJSONEncoder):
    def default(self, o: object) -> Any:
        return asdict(o) if is_dataclass(o) and not isinstance(o, type) else super().default(o)


def _has_rich() -> bool:
    """Whether the extra ``cli`` is installed."""
    try:
        import rich
    except ImportError:
        return False
    return rich is not None


def _is_unicode(stream: OutputWrapper) -> bool:
    return (getattr(stream, "encoding", None) or "").lower().startswith("utf")
