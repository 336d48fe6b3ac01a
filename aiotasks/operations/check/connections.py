"""Check ``connections``: the workers' connections fit into what the server and Django's pool allow."""

from collections.abc import Mapping

from django.db import connections

from .examination import Examination
from .finding import Result

__all__ = ["check"]

# The slots of a worker that is started without options, used where no worker runs.
DEFAULT_SLOTS = (100, 10)

# The share of the server's connections that may be open without a warning.
NEARLY_ALL = 0.9

# Connections of psycopg_pool.ConnectionPool by default.
PSYCOPGS_POOL = 4


async def check(examination: Examination) -> Result:
    """Return whether the server, and Django's pool, allow what the workers may open."""
    if examination.pooler != "none":
        return "not checked", "A pooler is in front, so its limits are the ones that count.", ""
    alive = examination.live_workers()
    slots = [(worker.loop.slots, worker.thread.slots) for worker in alive] or [DEFAULT_SLOTS]
    each = [examination.options.most_connections(*numbers) for numbers in slots]
    who = f"{len(alive)} running" if alive else "one by default"
    server = examination.server
    message = (
        f"Workers ({who}) open at most {sum(each)} of the {server.allowed} connections allowed; "
        f"open now, by everybody: {server.open} of {server.slots}."
    )
    remedy = (
        "Raise max_connections (or the role's or database's CONNECTION LIMIT), or lower POOL_MAX_SIZE, "
        "ASYNC_DB_THREADS or the workers' --threads."
    )
    if max(each) > server.allowed:
        return "error", message, remedy
    if (pool := _size_of_djangos_pool(examination.database)) is not None:
        threads = max(examination.options.orm_connections(loop) + thread for loop, thread in slots)
        if threads > pool:
            return (
                "warning",
                f"Django's pool of DATABASES[{examination.database!r}] has {pool} connections a process, "
                f"and a worker's threads may want {threads} at a time: they wait for each other.",
                f"Set the pool's max_size to {threads}, or lower ASYNC_DB_THREADS or --threads.",
            )
    if sum(each) > server.allowed or server.open > NEARLY_ALL * server.slots:
        return "warning", message, remedy
    return "ok", message, ""


def _size_of_djangos_pool(alias: str) -> int | None:
    """Return how many connections psycopg's pool has at most; None if Django has no pool."""
    options = connections[alias].settings_dict["OPTIONS"].get("pool")
    if not options:
        return None
    given = options if isinstance(options, Mapping) else {}
    return int(given.get("max_size") or given.get("min_size", PSYCOPGS_POOL))
