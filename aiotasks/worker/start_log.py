"""The lines of the log that a worker starts with: what it serves, and what it takes for that."""

import asyncio
import logging
from collections.abc import Sequence
from uuid import UUID

from django.conf import settings

from ..conf import Options
from .startup import Room

__all__ = ["log_start"]

logger = logging.getLogger("aiotasks.worker")


def log_start(
    worker_id: UUID | None,
    *,
    backend: str,
    queues: Sequence[str],
    concurrency: int,
    room: Room,
    options: Options,
    is_woken: bool,
    lease_interval: float,
) -> None:
    """Log what the worker serves, how it is woken, its lease, and the connections that it may open."""
    if settings.DEBUG:
        logger.warning("DEBUG is True: Django keeps the queries of each task in memory until the task ends")
    logger.info(
        "worker %s serves backend %r, queues %s", worker_id, backend, ", ".join(queues) or "of any name"
    )
    logger.info("loop: %d coroutine tasks at a time on %s", concurrency, _loop_name())
    logger.info("threads: %d sync tasks at a time", room.threads)
    logger.info("wake-ups: %s, polling within %g s", "LISTEN" if is_woken else "none", options.poll_interval)
    logger.info("lease: %g s, renewed every %g s", options.lease_timeout, lease_interval)
    orm = options.orm_connections(concurrency)
    logger.info(
        "connections: at most %d (pool %d, listener %d, heartbeat 1, %s), one more while a renewal hangs",
        room.pool + room.listens + 1 + (room.shared or orm + room.threads),
        room.pool,
        room.listens,
        f"all threads {room.shared}" if room.shared else f"ORM threads {orm}, sync threads {room.threads}",
    )


def _loop_name() -> str:
    """Return whose loop it is: uvloop, asyncio, or what an embedding site runs on."""
    names = (base.__module__.split(".")[0] for base in type(asyncio.get_running_loop()).__mro__)
    return next(name for name in names if name != __name__.split(".")[0])
