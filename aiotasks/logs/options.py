"""``--log-format`` and ``--log-level``: what the worker's own handler writes to stderr, and how."""

import argparse
import logging

from . import last_resort, loggers
from .formats import FORMATS
from .loggers import own_handler_shows, package_logger, stderr_handler

__all__ = ["add_log_options", "apply_log_options"]

logger = logging.getLogger("aiotasks")

LEVELS = ("debug", "info", "warning", "error", "critical")


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the records that LOGGING shows nowhere."""
    parser.add_argument(
        "--log-format",
        choices=tuple(FORMATS),
        metavar="|".join(FORMATS),
        help="how the worker's log is written to stderr, where LOGGING doesn't show it (text)",
    )
    parser.add_argument(
        "--log-level",
        choices=LEVELS,
        metavar="LEVEL",
        type=str.lower,
        help="the lowest level that is written there: debug, info, warning, error, or critical (info)",
    )


def apply_log_options(options: argparse.Namespace, *, warn: bool = True) -> None:
    """Have the handler for stderr write what the parsed options ask for.

    They change nothing about the site's own handlers. With ``warn`` a warning is logged for options that do
    nothing, because LOGGING shows all of the worker's records; call it once records are shown.
    """
    last_resort.line_format = options.log_format or "text"
    stderr_handler.setFormatter(FORMATS[last_resort.line_format]())
    stderr_handler.setLevel((options.log_level or "info").upper())
    package_logger.setLevel(package_logger.level)  # clears the levels that loggers have cached
    given = {"--log-format": options.log_format, "--log-level": options.log_level}
    useless = [f"{name} {value}" for name, value in given.items() if value is not None]
    if warn and useless and not any(map(own_handler_shows, loggers.OWN_LOGGERS)):
        logger.warning(
            "Options for the log do nothing, because LOGGING shows the worker's records options=%s",
            " ".join(useless),
        )
