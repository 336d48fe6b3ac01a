"""The loop that the maintenance parts share."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from django.db import utils

from ..store.drivers import is_transient

__all__ = ["periodically"]

logger = logging.getLogger("aiotasks.worker")


async def periodically(run_once: Callable[[], Awaitable[object]], interval: float, *, name: str) -> None:
    """Await ``run_once`` about every ``interval`` seconds, for ever, whatever it raises."""
    while True:
        await asyncio.sleep(interval * random.uniform(0.8, 1.0))
        try:
            await run_once()
        except utils.Error as error:
            if not is_transient(error):
                logger.exception("maintenance failed part=%s", name)
        except Exception:
            logger.exception("maintenance failed part=%s", name)
