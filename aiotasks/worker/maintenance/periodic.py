"""The loop that the maintenance parts share."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from django.db import utils

from ...db.errors import is_transient

__all__ = ["periodically"]

logger = logging.getLogger("aiotasks.worker")


async def periodically(
    run_once: Callable[[], Awaitable[float | None]], interval: float, *, name: str
) -> None:
    """Await ``run_once`` about every ``interval`` seconds, forever, whatever it raises.

    If it returns fewer seconds than ``interval``, the next round comes that soon.

    An error that waiting doesn't help against (tables are missing) is logged once, until it is over.
    """
    logged: type[Exception] | None = None
    soon: float | None = None
    while True:
        wait = interval if soon is None else min(soon, interval)
        await asyncio.sleep(wait * random.uniform(0.8, 1.0))
        soon = None
        try:
            soon = await run_once()
        except Exception as error:
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
