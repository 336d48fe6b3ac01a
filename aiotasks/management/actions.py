"""Subcommands with actions of their own, as ``schedules`` and ``limits`` have them."""

from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from aiotasks.management.output import Output, add_json
from aiotasks.operations.tables import Part
from aiotasks.worker.process.cli import add_backend

__all__ = ["Action", "Answer", "add_actions", "show"]


class Answer(NamedTuple):
    """What is printed: for people, and for programs."""

    parts: Sequence[Part]
    json: object


class Action(NamedTuple):
    """What an action says about itself, adds to its parser, and does."""

    help: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], Answer]


def add_actions(parser: ArgumentParser, actions: Mapping[str, Action], **defaults: object) -> None:
    """Add actions, with the options that all have.

    defaults: the arguments of ``list``, which is meant where no action is given.
    """
    add_backend(parser)
    add_json(parser)
    choices = parser.add_subparsers(dest="action", title="actions", metavar="ACTION")
    parser.set_defaults(action="list", **defaults)  # after them, because they have a default themselves
    for name, action in actions.items():
        own = choices.add_parser(name, help=action.help, description=action.help)
        # What is given after the action counts as well as before it.
        add_backend(own, default=SUPPRESS)
        add_json(own, default=SUPPRESS)
        action.add_arguments(own)


def show(answer: Answer, options: Namespace, output: Output) -> None:
    """Print an answer, as the options say."""
    if options.json:
        output.json(answer.json)
    else:
        output.show(*answer.parts)
