"""Check ``connections``: the connections of all workers fit into what the server and Django's pool allow."""

from collections.abc import Mapping

from django.db import connections

from ...store.inspection import LiveWorkers
from .examination import Examination, options_of
from .finding import Result

__all__ = ["check"]

# The slots of a worker that is started without options, used where no worker runs.
DEFAULT_SLOTS = (100, 10)

# The share of the server's connections that may be open without a warning.
NEARLY_ALL = 0.9

# Connections of psycopg_pool.ConnectionPool by default.
PSYCOPGS_POOL = 4


async def check(examination: Examination) -> Result:
    """Return whether the server, and Django's pool, allow what the workers of the database may open.

    A row holds a worker's slots. The sizes of its pools are taken from the settings here.
    """
    mine, server = examination.options, examination.server
    fleet = examination.fleet or [LiveWorkers(examination.alias, *DEFAULT_SLOTS, None, False, 1)]
    options = {workers.backend: options_of(workers.backend) or mine for workers in fleet}
    each = [
        options[workers.backend].most_connections(workers.concurrency, workers.threads) for workers in fleet
    ]
    number = sum(workers.number for workers in fleet)
    most = sum(one * workers.number for one, workers in zip(each, fleet, strict=True))
    who = f"{number} running" if examination.fleet else "one by default"
    if examination.pooler != "none":
        past = sum(workers.number for workers in fleet if options[workers.backend].listen_database)
        return (
            "not checked",
            "A pooler is in front, so its limits are the ones that count. "
            f"Workers on this database ({who}) open at most {most - past} connections to it"
            + (f", and {past} past it, for LISTEN." if past else "."),
            "",
        )
    message = (
        f"Workers on this database ({who}) open at most {most} of the {server.allowed} connections allowed; "
        f"open now, by everybody: {server.open} of {server.slots}."
    )
    if examination.fleet:
        message += " Counted with the slots of each, and POOL_MAX_SIZE and ASYNC_DB_THREADS as they are here."
    remedy = (
        "Lower POOL_MAX_SIZE, ASYNC_DB_THREADS or the workers' --threads; or run fewer workers (--processes) "
        "with more slots each; or raise max_connections (or the role's or database's CONNECTION LIMIT); or "
        "have the workers go through PgBouncer."
    )
    if max(each) > server.allowed:
        return "error", message, remedy
    if (pool := _size_of_djangos_pool(examination.database)) is not None:
        slots = [
            (workers.concurrency, workers.threads)
            for workers in fleet
            if workers.backend == examination.alias
        ] or [DEFAULT_SLOTS]
        threads = max(mine.orm_connections(loop) + thread for loop, thread in slots)
        if threads > pool:
            return (
                "warning",
                f"Django's pool of DATABASES[{examination.database!r}] has {pool} connections a process, "
                f"and a worker's threads may want {threads} at a time: they wait for each other.",
                f"Set the pool's max_size to {threads}, or lower ASYNC_DB_THREADS or --threads.",
            )
    if most > server.allowed or server.open > NEARLY_ALL * server.slots:
        return "warning", message, remedy
    return "ok", message, ""


def _size_of_djangos_pool(alias: str) -> int | None:
    """Return how many connections psycopg's pool has at most; None if Django has no pool."""
    options = connections[alias].settings_dict["OPTIONS"].get("pool")
    if not options:
        return None
    given = options if isinstance(options, Mapping) else {}
    return int(given.get("max_size") or given.get("min_size", PSYCOPGS_POOL))
