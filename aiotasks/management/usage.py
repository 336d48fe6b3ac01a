"""Mistakes at the command line of ``manage.py aiotasks``: UsageError, and the parser that raises it."""

from typing import NoReturn

from django.core.management.base import CommandError, CommandParser

from aiotasks.worker.process.parser import USAGE, OneLineParser, sentence

__all__ = ["SubcommandParser", "UsageError"]


class UsageError(CommandError):
    """A mistake at the command line: a sentence, and exit code 2."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, returncode=USAGE)


class SubcommandParser(OneLineParser, CommandParser):
    """The parser of a subcommand: raises UsageError for mistakes, because ``call_command`` must not exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(sentence(message, self.prog))
