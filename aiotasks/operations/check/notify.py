"""Check ``notify``: NOTIFY is on, is delivered, and wakes the workers."""

import asyncio
import uuid
from contextlib import suppress

from django.db import utils

from ...db.connect import connect
from ...db.drivers import Connection
from ...db.errors import describe, django_errors
from ...store.store import Store
from ...store.wakeups import CHANNEL
from ..text import age
from .examination import Examination, remedy_for
from .finding import Result

__all__ = ["check", "notify_arrives"]

# Seconds for which a notification is waited for; it takes milliseconds.
NOTIFY_TIMEOUT = 2.0

# How full NOTIFY's queue may be: from here on PostgreSQL itself warns in its log.
NOTIFY_QUEUE_FULL = 0.5


async def check(examination: Examination) -> Result:
    """Return whether NOTIFY wakes the workers."""
    polls = f"tasks wait for the next poll, up to {examination.options.poll_interval:g} s"
    if not examination.options.notify:
        return (
            "warning",
            f"NOTIFY is off in OPTIONS: {polls}.",
            "Set NOTIFY to True, unless that is meant.",
        )
    usage, pid, name, seconds = await examination.store.notify_queue()
    if usage >= NOTIFY_QUEUE_FULL:
        return (
            "warning",
            f"NOTIFY's queue is {usage:.0%} full; once it is full, nothing wakes a worker, and {polls}. "
            "A session that LISTENs holds it up for as long as its transaction lasts."
            + (f" The oldest: process {pid} ({name}), {age(seconds or 0.0)}." if pid is not None else ""),
            f"Have it end its transaction, or SELECT pg_terminate_backend({pid}); "
            "idle_in_transaction_session_timeout ends such sessions by itself."
            if pid is not None
            else "See who LISTENs in a long transaction in pg_stat_activity of all databases.",
        )
    direct = examination.options.listen_database
    try:
        arrives = await _is_delivered(examination)
    except utils.Error as error:
        return (
            "warning",
            f"LISTEN can't be tried: {describe(error, direct or examination.database)} Without it {polls}.",
            f"See what is wrong with DATABASES[{direct!r}]." if direct else remedy_for(error),
        )
    if not arrives:
        remedy = (
            f"LISTEN_DATABASE has to lead to the same database as {examination.database!r}, past any pooler: "
            f"see HOST, PORT and NAME of DATABASES[{direct!r}]."
            if direct
            else "LISTEN needs a session of its own: name an alias of DATABASES that goes past the "
            "pooler as LISTEN_DATABASE in OPTIONS."
        )
        return (
            "warning",
            f"NOTIFY is not delivered (it did not arrive within {NOTIFY_TIMEOUT:g} s): {polls}.",
            remedy,
        )
    deaf = [
        f"{worker.host}:{worker.pid}" for worker in examination.live_workers() if worker.listening is False
    ]
    if deaf:
        return (
            "warning",
            f"NOTIFY is delivered here, but doesn't wake {', '.join(deaf)}.",
            "See what these workers' logs say of LISTEN, and whether they have NOTIFY in their OPTIONS.",
        )
    return "ok", "NOTIFY is delivered.", ""


async def _is_delivered(examination: Examination) -> bool:
    # Connects as a worker's listener does.
    listening = await connect(
        examination.options.listen_database or examination.database,
        timeout=examination.timeout,
        statement_cache_size=0,
        command_timeout=examination.timeout,
    )
    try:
        return await notify_arrives(listening, examination.store, within=NOTIFY_TIMEOUT)
    finally:
        listening.terminate()


async def notify_arrives(listening: Connection, store: Store, *, within: float) -> bool:
    """Return whether a notification sent by ``store`` arrives on ``listening`` within so many seconds.

    It is sent by another connection, because a pooler returns a session's own notifications even where it
    delivers no others.
    """
    arrived = asyncio.Event()
    channel = f"{CHANNEL}_probe_{uuid.uuid4().hex}"

    def arrive(*_: object) -> None:
        arrived.set()

    with django_errors():
        await listening.add_listener(channel, arrive)
    try:
        await store.notify(channel, [""], alone=True)
        with suppress(TimeoutError):
            await asyncio.wait_for(arrived.wait(), within)
    finally:
        with django_errors():  # else a pooler would go on listening
            await listening.remove_listener(channel, arrive)
    return arrived.is_set()
