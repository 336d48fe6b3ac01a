"""The loop that the maintenance parts share."""

import logging
from collections.abc import Awaitable, Callable

from django.db import utils

from ...db.errors import is_transient
from ..fleet import Turn

__all__ = ["periodically"]

logger = logging.getLogger("aiotasks.worker")


async def periodically(run_once: Callable[[], Awaitable[float | None]], turn: Turn, *, name: str) -> None:
    """Await ``run_once`` whenever it is the worker's ``turn``, forever, whatever it raises.

    If it returns seconds, it is awaited again within these, whoever's turn it is.

    An error that waiting doesn't help against (tables are missing) is logged once, until it is over.
    """
    logged: type[Exception] | None = None
    while True:
        await turn.wait()
        try:
            if (soon := await run_once()) is not None:
                turn.take_within(soon)
        except Exception as error:
            turn.take_within(turn.interval)  # of a large fleet's worker the next turn may be hours away
            if isinstance(error, utils.Error) and is_transient(error):
                continue
            if type(error) is not logged:
                logged = type(error)
                logger.error(
                    "Maintenance fails until this is fixed part=%s error=%r",
                    name,
                    str(error),
                    # For an error of the database its own words are enough.
                    exc_info=None if isinstance(error, utils.Error) else error,
                )
        else:
            if logged is not None:
                logger.info("Maintenance goes on part=%s", name)
            logged = None
