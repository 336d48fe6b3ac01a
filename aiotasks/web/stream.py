"""A stream of Server-Sent Events: the tasks as they are, then each change.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import groupby
from operator import attrgetter

from asgiref.sync import sync_to_async
from django.db import connections, utils
from django.tasks import task_backends

from ..backend import PostgresBackend
from ..compat import end_thread_of_context, has_thread_of_context
from ..results import parse_id
from ..store.blocks import belongs_to_django
from ..store.changes import WATCHED
from ..store.joins import Watch
from ..store.loop import resources
from .access import Wanted
from .closing import closing_of_loop
from .states import DIGEST_LENGTH, Shown, look_up, states_json

__all__ = ["Cursor", "stream"]

logger = logging.getLogger("aiotasks.web")

# Seconds after which a stream ends, and the browser comes back. It may then be another process's, after a
# deploy; and of a browser that is gone without a word nothing is left. Random, so that not all come back at
# once.
LONGEST, SHORTEST = 30.0, 25.0

# Seconds of silence after which a comment is sent, because proxies cut connections that say nothing.
KEEP_ALIVE = 15.0

# Seconds from one event of a stream to the next, at least.
EVENT_INTERVAL = 0.05

# Milliseconds after which a browser comes back: when the connection is lost (at random, because they all lose
# it when a server goes), and when the stream has ended as planned.
RETRY_LOST = (2000, 4000)
RETRY_PLANNED = 250


class Cursor:
    """What a client has of these tasks. Its text is an event's id, which the browser sends when it comes
    back.

    A digest for each task, in their order: the same request, so the same order.
    """

    def __init__(self, wanted: Sequence[Wanted], text: str | None = None) -> None:
        width = DIGEST_LENGTH
        if text is None or len(text) != width * len(wanted):  # of another request, or made up
            text = "-" * width * len(wanted)
        self._digests = {each: text[n * width : (n + 1) * width] for n, each in enumerate(wanted)}

    def __str__(self) -> str:
        return "".join(self._digests.values())

    def news(self, states: Mapping[Wanted, Shown]) -> list[Shown]:
        """Return the states that the client hasn't. It has them then."""
        news = [shown for each, shown in states.items() if self._digests[each] != shown.digest]
        self._digests |= {each: shown.digest for each, shown in states.items()}
        return news


async def stream(
    wanted: Sequence[Wanted], states: dict[Wanted, Shown], cursor: Cursor
) -> AsyncIterator[bytes]:
    """Yield the events of these tasks, which are in ``states`` as they were when it was looked at last.

    Nothing is queued: what has changed while the client was slow is looked up when it takes more.
    """
    if has_thread_of_context():
        await sync_to_async(_close_connections, thread_sensitive=True)()
        end_thread_of_context()
    loop, closing = asyncio.get_running_loop(), closing_of_loop()
    ends_at = loop.time() + random.uniform(SHORTEST, LONGEST)
    yield _line("retry", str(random.randint(*RETRY_LOST)))
    silent_since = loop.time()
    by_id = {parse_id(each.id): each for each in wanted}
    async with _watching(_unfinished(states)) as watch:
        while True:
            news = _news(cursor, states)
            has_news = news is not None
            states = {each: shown.sent() for each, shown in states.items()}
            if news is not None:
                yield news
                news = None  # the stream sleeps without it
                silent_since = loop.time()
            elif loop.time() >= silent_since + KEEP_ALIVE:
                yield b": keep-alive\n\n"
                silent_since = loop.time()
            if not _unfinished(states):
                yield _event(cursor, "{}", kind="end")
                return
            if watch is None:
                return  # sync code waits for this stream, so nothing else can change meanwhile
            try:
                async with closing.until(ends_at):
                    await asyncio.sleep(EVENT_INTERVAL if has_news else 0)
                    ids = await watch.changed(max(0.0, silent_since + KEEP_ALIVE - loop.time()))
                    states |= await look_up([by_id[id] for id in ids])
            except TimeoutError:
                if closing.has_begun:
                    return  # nobody would answer after RETRY_PLANNED
                yield _line("retry", str(RETRY_PLANNED))
                return
            except utils.Error as error:
                logger.info("A stream of events has ended, because the database failed error=%r", str(error))
                return


def _unfinished(states: Mapping[Wanted, Shown]) -> list[Wanted]:
    return [each for each, shown in states.items() if not shown.is_final]


def _news(cursor: Cursor, states: Mapping[Wanted, Shown]) -> bytes | None:
    """The event of what the client hasn't; None if it has all."""
    news = cursor.news(states)
    return _event(cursor, states_json(news)) if news else None


def _line(name: str, value: str) -> bytes:
    return f"{name}: {value}\n\n".encode()


def _event(cursor: Cursor, data: str, kind: str | None = None) -> bytes:
    """An event. JSON has no line ends."""
    name = f"event: {kind}\n" if kind else ""
    return f"{name}id: {cursor}\ndata: {data}\n\n".encode()


@asynccontextmanager
async def _watching(wanted: Collection[Wanted]) -> AsyncIterator[Watch | None]:
    """Watch all changes of these tasks; None where that can't be."""
    watch: Watch | None = None
    async with AsyncExitStack() as stack:
        by_backend = attrgetter("backend")
        for alias, some in groupby(sorted(wanted, key=by_backend), by_backend):
            backend = task_backends[alias]
            if isinstance(backend, PostgresBackend) and not belongs_to_django(backend.config.database):
                watch = watch or Watch(WATCHED)
                ids = [id for each in some if (id := parse_id(each.id))]
                changes = resources(backend.config).changes
                await stack.enter_async_context(changes.watching(alias, ids, WATCHED, watch=watch))
        yield watch


def _close_connections() -> None:
    """Close the connections that the request's sync code has opened: a stream needs none, and may be one of
    thousands. Django itself does so when the response has ended."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()
