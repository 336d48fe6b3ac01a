"""Command lines whose mistakes are answered by one line, and exit code 2."""

import re
from argparse import ArgumentParser
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn

from .exits import report_error

__all__ = ["USAGE", "OneLineParser", "did_you_mean", "sentence"]

# The exit code of a mistake at the command line, as argparse has it.
USAGE = 2

# What argparse says of a word that isn't one of the choices; Python 3.12 and 3.13 quote them.
_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.+?)\)\Z", re.DOTALL)


class OneLineParser(ArgumentParser):
    """A parser that reports a mistake in one line on stderr, and exits with 2; argparse prints the usage
    too."""

    def error(self, message: str) -> NoReturn:
        report_error(sentence(message, self.prog))
        self.exit(USAGE)


def sentence(message: str, program: str) -> str:
    """Return argparse's message in one line, with what was meant where that can be guessed, and where people
    find the options."""
    hint = ""
    if (choice := _CHOICE.search(message)) is not None:
        hint = did_you_mean(choice[1], re.findall(r"[^\s,']+", choice[2]))
    return f"{' '.join(message.split())}.{hint} See {program} --help."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question after names that are like an unknown one; an empty text where none is.

    The last part of a path counts as like it: it is what people remember of the path of a task.
    """
    known = list(known)
    close = [each for each in known if each.endswith(f".{name}")] or get_close_matches(name, known)
    return f" Did you mean {' or '.join(map(repr, close[:3]))}?" if close else ""
