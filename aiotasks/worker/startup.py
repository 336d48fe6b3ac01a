"""The checks before a worker runs: its arguments, the database, descriptors, connections and privileges."""

import asyncio
import logging
import resource
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

import anyio
from django.core.exceptions import ImproperlyConfigured
from django.db import utils
from django.tasks import task_backends

from ..backend import PostgresBackend
from ..db.connection_thread import share_connections
from ..db.errors import describe, is_about_the_session, is_transient
from ..db.outage import Outage
from ..exceptions import DatabaseNotReady
from ..rows import LaneRequest, Status
from ..store.loop import LoopResources
from ..store.outcomes import Finish
from ..store.row_security import WORKER, HiddenRows, hidden_rows
from ..store.session import GETS_IN, differences, djangos_session, our_session
from ..store.store import Store
from ..store.wakeups import CHANNEL
from .free_descriptors import CONNECTION_DESCRIPTORS, SPARE_DESCRIPTORS, count_free_descriptors

__all__ = [
    "Room",
    "backend_of",
    "check_descriptors",
    "check_privileges",
    "explain",
    "find_room",
    "limits_of",
    "number_of_slots",
    "queues_of",
    "reach_database",
    "seconds_of_grace",
]

logger = logging.getLogger("aiotasks.worker")

# Of one queue's tasks at a time. What a claim is told must fit into PostgreSQL's integer.
MAX_QUEUE_LIMIT = 1_000_000


def backend_of(alias: str) -> PostgresBackend:
    """Return the backend at an alias of TASKS. Raises ImproperlyConfigured for a mistake in its settings."""
    if alias not in task_backends.settings:
        known = ", ".join(repr(one) for one in task_backends.settings)
        raise ImproperlyConfigured(f"TASKS has no backend {alias!r}; it has {known}.")
    backend = task_backends[alias]
    if not isinstance(backend, PostgresBackend):
        raise ImproperlyConfigured(
            f"TASKS[{alias!r}] is a {type(backend).__name__}, not an aiotasks.backend.PostgresBackend."
        )
    errors = [message for message in backend.check() if message.is_serious()]
    if errors:
        sentences = [str(text) for message in errors for text in (message.msg, message.hint) if text]
        raise ImproperlyConfigured(" ".join(sentences))
    return backend


def queues_of(backend: PostgresBackend, wanted: Sequence[str] | Mapping[str, int | None] | None) -> list[str]:
    """Return the queues to serve, sorted; empty for any name. Raises TypeError and ValueError."""
    known = backend.queues
    if wanted is None:
        return sorted(known)
    if isinstance(wanted, str):
        raise TypeError(f"queues must be a list of queue names, not {wanted!r}.")
    if not wanted:
        raise ValueError(f"queues must name a queue, and is {wanted!r}; None serves all of the backend's.")
    for name in wanted:
        if not isinstance(name, str):
            raise TypeError(f"queues must be a list of queue names, and has {name!r}.")
        if not name or (known and name not in known):
            raise ValueError(
                f"Queue {name!r} isn't in TASKS[{backend.alias!r}]['QUEUES'] "
                f"({', '.join(sorted(known)) or 'any name'})."
            )
    return sorted(set(wanted))


def limits_of(wanted: Sequence[str] | Mapping[str, int | None] | None) -> dict[str, int]:
    """Return how many tasks of a queue may run at a time, by the names of those that have a limit. Raises
    TypeError and ValueError.
    """
    if not isinstance(wanted, Mapping):
        return {}
    limits = {name: limit for name, limit in wanted.items() if limit is not None}
    for name, limit in limits.items():
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"The limit of queue {name!r} must be a whole number or None, not {limit!r}.")
        if not 0 < limit <= MAX_QUEUE_LIMIT:
            raise ValueError(
                f"The limit of queue {name!r} must be from 1 to {MAX_QUEUE_LIMIT:,}, and is {limit!r}."
            )
    return limits


def number_of_slots(name: str, value: int) -> int:
    """Return ``value``, the worker's argument ``name``. Raises TypeError and ValueError if it is wrong."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number from 0 to 100000, not {value!r}.")
    if not 0 <= value <= 100_000:
        raise ValueError(f"{name} must be a whole number from 0 to 100000, not {value!r}.")
    return value


def seconds_of_grace(value: float) -> float:
    """Return ``value``, the worker's argument ``grace``. Raises TypeError and ValueError if it is wrong."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"grace must be 0 to 86400 seconds, not {value!r}.")
    if not 0 <= value <= 86_400:
        raise ValueError(f"grace must be 0 to 86400 seconds, not {value!r}.")
    return value


async def reach_database(
    store: Store,
    backend: str,
    *,
    database: str,
    within: float | None,
    stopping: asyncio.Event,
    failed: Callable[[], None],
) -> bool:
    """Wait until tasks can be claimed and finished; returns False if ``stopping`` is set before that.

    ``within`` is in seconds (None: forever). ``failed`` is called after every failed try. Unless it may wait
    forever, it raises DatabaseNotReady when the time is up, and at once for an error that waiting can't fix.
    """
    loop = asyncio.get_running_loop()
    end = None if within is None else loop.time() + within
    outage = Outage(logger, "start", "the worker waits for its database")
    while not stopping.is_set():
        try:
            reached = await _unless(stopping, _claim_and_finish_nothing(store, backend))
        except utils.Error as error:
            gives_up = end is not None and (not is_transient(error) or loop.time() >= end)
            reason = await explain(error, database, store) if gives_up or not outage.failures else None
            if gives_up:
                raise DatabaseNotReady(reason) from error
            pause = outage.failed(error, reason)
            if end is not None:
                pause = min(pause, max(0.0, end - loop.time()))
        else:
            if reached:
                outage.ended()
            return reached
        failed()
        with anyio.move_on_after(pause):
            await stopping.wait()
    return False


# Descriptors that a worker opens at its start: two connections of its pool, the heartbeat's loop (3) and
# connection, the listener's connection.
FEWEST_IN_POOL = 2
OWN_DESCRIPTORS = FEWEST_IN_POOL + 5


def check_descriptors(loop_resources: LoopResources, *, lanes: int, must: bool) -> None:
    """Count the free file descriptors, and limit the pool so that a thread with a connection can start in
    each of so many ``lanes``. Without that, claimed tasks would wait forever.

    If there are too few: raises ImproperlyConfigured with ``must``, else logs an error.
    """
    fewest = OWN_DESCRIPTORS + SPARE_DESCRIPTORS + lanes * CONNECTION_DESCRIPTORS
    pool = loop_resources.options.pool_max_size
    free = count_free_descriptors()
    if free < fewest:
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        sentence = (
            f"This process may open {allowed} file descriptors (`ulimit -n`), of which {free} are free; a "
            f"worker needs {fewest}, so {allowed - free + fewest} in all. Raise the limit (systemd: "
            "LimitNOFILE=; Docker: --ulimit nofile=)."
        )
        if must:
            raise ImproperlyConfigured(sentence)
        logger.error("Too few file descriptors. %s", sentence)
    if (room := max(1, FEWEST_IN_POOL + free - fewest)) < pool:
        loop_resources.driver.cache.limit_to(room)


# The privilege that a worker needs to register.
FOR_A_LEASE = "INSERT ON aiotasks_worker"

# Lease, statements and the tasks' queries need a connection each; LISTEN needs one more.
FEWEST_CONNECTIONS = 3
ENOUGH_TO_LISTEN = 4


class Room(NamedTuple):
    """How a worker uses the connections that the server allows. One more is for its lease."""

    pool: int
    listens: bool  # one of them may be the listener's
    threads: int  # at a time, for sync tasks
    orm_threads: int  # for the ORM calls of coroutine tasks
    shared: int = 0  # connections that all threads take turns with; 0: each may have its own


async def find_room(loop_resources: LoopResources, *, concurrency: int, threads: int, must: bool) -> Room:
    """Ask how many connections the server allows, and limit pool and threads to that.

    If no task could make a query: raises DatabaseNotReady with ``must``, else logs an error.
    """
    options = loop_resources.options
    enough = Room(options.pool_max_size, True, threads, options.async_db_threads)
    if not options.statement_cache_size:
        return enough  # behind a pooler other limits hold
    try:
        allowed = (await loop_resources.store.inspect_server()).allowed
    except utils.Error:
        return enough  # the worker's parts get the error, too, and wait
    wanted = options.most_connections(concurrency, threads)
    if allowed >= wanted:
        return enough
    allowance = (
        f"PostgreSQL allows this role {allowed} connections (max_connections, or the CONNECTION LIMIT of the "
        f"role or the database) of the {wanted} that the worker may want"
    )
    remedy = "Raise it, or lower POOL_MAX_SIZE, ASYNC_DB_THREADS or --threads."
    if allowed < FEWEST_CONNECTIONS:
        sentence = (
            f"{allowance}; it needs {FEWEST_CONNECTIONS}, for its lease, its statements and its tasks' "
            f"queries. {remedy}"
        )
        if must:
            raise DatabaseNotReady(sentence)
        logger.error("Too few connections for this worker. %s", sentence)
    listens = allowed >= ENOUGH_TO_LISTEN
    tasks = options.orm_connections(concurrency) + threads
    others = 2 if listens else 1  # the lease, the listener
    cache = loop_resources.driver.cache
    pool = max(1, min(options.pool_max_size, cache.limit or allowed, allowed - others - tasks))
    cache.limit_to(pool)
    left = max(1, allowed - others - pool)
    parts = [f"its pool takes {pool}"]
    if not listens:
        parts.append("it polls without LISTEN")
    if shared := left if left < tasks else 0:
        share_connections(options.database)
        parts.append(
            f"tasks' queries share the {left} left, so no thread keeps one after a task or a query, and as "
            f"many sync tasks run at a time: {min(threads, left)}"
        )
    logger.warning("The worker uses fewer connections. %s: %s. %s", allowance, "; ".join(parts), remedy)
    return Room(pool, listens, min(threads, left), min(options.async_db_threads, left), shared)


async def check_privileges(store: Store, *, must: bool) -> None:
    """Log a missing privilege for the lease, and row-level security that hides rows from the worker: to it
    the table would look empty.

    If it could do nothing: raises DatabaseNotReady with ``must``, else logs an error.
    """
    try:
        role, rights, _ = await store.select_rights()
        found = hidden_rows(role, await store.select_row_security(), WORKER)
    except utils.Error:
        return  # the worker's parts get the error, too, and wait
    if rights is not None and FOR_A_LEASE not in rights:  # reach_database() has failed for any other
        sentence = f"Role {role} is missing the privilege {FOR_A_LEASE}."
        found = HiddenRows(True, sentence, f"GRANT {FOR_A_LEASE} TO {role}")
    if found is not None:
        if found.all and must:
            raise DatabaseNotReady(f"{found.sentence} {found.remedy}.")
        level = logging.ERROR if found.all else logging.WARNING
        logger.log(level, "Privileges are missing. %s %s.", found.sentence, found.remedy)


async def _unless(stopping: asyncio.Event, trying: Coroutine[Any, Any, None]) -> bool:
    """Return whether ``trying`` succeeded before ``stopping`` was set. That cancels it, because a connection
    without answers would delay the end for COMMAND_TIMEOUT or longer.
    """
    tried, stopped = (asyncio.ensure_future(one) for one in (trying, stopping.wait()))
    try:
        await asyncio.wait([tried, stopped], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        if not tried.done():
            tried.cancel()
            await asyncio.wait([tried])
    if tried.cancelled():
        return False
    tried.result()
    return True


async def _claim_and_finish_nothing(store: Store, backend: str) -> None:
    """Run a claim and a finish without rows on two connections, so that these have planned the statements.

    The first claim of a connection takes PostgreSQL 10 to 15 ms, the second 0.3. This also fails if the
    tables are read-only or older than this code: a worker must not claim tasks that it can't finish.
    """
    none = LaneRequest([], [], 0)
    claims = (store.claim_jobs(uuid.uuid4(), uuid.uuid4(), backend, loop=none, thread=none) for _ in range(2))
    await asyncio.gather(*claims)
    finishes = (
        store.finish_jobs([Finish(uuid.uuid4(), uuid.uuid4(), Status.FAILED, None, None)]) for _ in range(2)
    )
    await asyncio.gather(*finishes, store.renew_lease(uuid.uuid4(), 0.0), store.wake_workers(CHANNEL, []))


# Seconds for the comparison with Django's connection.
COMPARE_TIMEOUT = 5.0


async def explain(error: utils.Error, database: str, store: Store) -> str:
    """Return ``describe()``'s sentence or, if Django's own connection works, how the two differ."""
    reason = describe(error, database)
    if not is_about_the_session(error):
        return reason
    try:
        theirs = await djangos_session(database, timeout=COMPARE_TIMEOUT)
    except Exception:  # any error of an engine: Django can't connect either  # noqa: BLE001
        return reason
    try:
        ours = await our_session(store.driver)
    except utils.Error:
        return f"{reason} {GETS_IN}"
    differing = differences(database, theirs, ours)
    if not differing or not theirs.finds_tables:
        return reason
    return (
        f"Only Django's connection to DATABASES[{database!r}] has the use of aiotasks' tables, not aiotasks' "
        f"own ({next(iter(str(error).splitlines()), '')}). "
        + " ".join(f"{what}. {remedy}" for what, remedy in differing)
    )
