"""``aiotasks`` and ``python -m aiotasks``: the commands of ``manage.py aiotasks`` without a manage.py."""

import os
import sys
from collections.abc import Sequence

from .worker.process import cli
from .worker.process.exits import report_error
from .worker.process.parser import OneLineParser
from .worker.process.site import set_up

__all__ = ["main"]

# What the site isn't needed for, so that it works before there is one, and where its settings are broken.
WITHOUT_SITE = {"-h", "--help", "--version"}
COMMANDS_WITHOUT_SITE = {"completion"}


def main() -> int:
    """Run the command that the process was started with; returns its exit code."""
    name = os.path.basename(sys.argv[0])
    program = "python -m aiotasks" if name == "__main__.py" else name
    parser = OneLineParser(prog=program, add_help=False, allow_abbrev=False)
    parser.add_argument("--settings", metavar="MODULE")
    # It may stand anywhere: in manage.py's commands it must be before the subcommand.
    options, arguments = parser.parse_known_args(sys.argv[1:])
    if arguments[:1] == ["worker"]:
        settings = [] if options.settings is None else [f"--settings={options.settings}"]
        return cli.main([*arguments[1:], *settings], program=f"{program} worker")
    if not _needs_site(arguments):
        _set_up_without_site()
    elif (reason := set_up(options.settings)) is not None:
        return report_error(reason)
    from .management.commands.aiotasks import Command

    Command().run_as(program, arguments)
    return 0


def _needs_site(arguments: Sequence[str]) -> bool:
    return (
        bool(arguments) and arguments[0] not in COMMANDS_WITHOUT_SITE and WITHOUT_SITE.isdisjoint(arguments)
    )


def _set_up_without_site() -> None:
    import django
    from django.conf import settings

    settings.configure(INSTALLED_APPS=["aiotasks"])
    django.setup()


if __name__ == "__main__":
    sys.exit(main())
