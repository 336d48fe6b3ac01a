"""``aiotasks completion``: a script that completes the commands and options of ``aiotasks`` in a shell."""

from argparse import ArgumentParser, Namespace

from django.core.management.base import CommandError

from aiotasks.management.output import Output

__all__ = ["HELP", "SHELLS", "add_arguments", "run"]

HELP = "print a script for completion in a shell, for the program `aiotasks`"

# Of those that shtab knows, the ones whose scripts are tested.
SHELLS = ("bash", "zsh")

PROGRAM = "aiotasks"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``completion``."""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=" or ".join(SHELLS))


def run(options: Namespace, output: Output) -> int:
    """Print the script; returns 0. Raises CommandError where shtab isn't installed."""
    try:
        import shtab
    except ImportError:
        raise CommandError(
            "Completion needs shtab, of the extra `cli`: pip install 'django-aiotasks[cli]'."
        ) from None
    # The whole command's parser, of which this module is a part.
    from aiotasks.management.commands.aiotasks import Command

    output.show(shtab.complete(Command().parser_of(PROGRAM), shell=options.shell))
    return 0
