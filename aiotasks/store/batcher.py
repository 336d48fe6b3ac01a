"""Batcher: calls that arrive while a flush is under way go together in the next one.

A call that finds no flush under way is flushed at once, so a single caller has no delay, and a thousand share
a round trip and a commit. The idea is group commit's (DeWitt et al., SIGMOD 1984).

While the database is slow or down, callers wait and memory stays bounded, by number and by size: callers that
can wait ask for ``room()`` before they make an item; others check ``crowded``.
"""

import asyncio
import contextvars
import copy
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from django.db import utils

from ..db.errors import is_transient

__all__ = ["Batcher", "Caller", "own_error"]

# Bytes of one flush. A thousand small rows have a tenth of it. A statement of 1,000 arguments of 1 MB each
# would take longer than COMMAND_TIMEOUT, at every repetition.
FLUSH_SIZE = 4 * 1024 * 1024

# Bytes, and calls, that wait for a flush when the buffer is crowded.
MOST_BYTES = 8 * FLUSH_SIZE
MOST_CALLS = 10_000


class Caller[Result](Protocol):
    """The receiver of a result: mostly a future, of whose methods these are some."""

    def done(self) -> bool:
        """Whether it has its answer, or was cancelled."""

    def set_result(self, result: Result, /) -> None: ...

    def set_exception(self, exception: BaseException, /) -> None: ...


class Batcher[Item, Result]:
    """Coalesces concurrent calls on one event loop into calls of ``flush``.

    ``flush`` takes a list of items and returns one result for each, in their order. At most
    one flush is under way, of at most ``limit`` items, and of at most FLUSH_SIZE bytes or of one
    item alone, by what ``size`` says of each.

    - Every caller is answered exactly once, whatever happens: with its own result, or with an exception
    object
      that no other caller shares.
    - A flush that fails because of its content is halved until the bad item fails alone.
    - A caller that is cancelled before its flush is left out of it; later, it doesn't affect the others.
    """

    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        *,
        limit: int,
        size: Callable[[Item], int] = lambda item: 0,
    ) -> None:
        self._flush = flush
        self._limit = limit
        self._size = size
        self._waiting: deque[tuple[Item, Caller[Result], int]] = deque()
        self._bytes = 0  # of the waiting items
        self._outside: OrderedDict[asyncio.Future[None], None] = OrderedDict()  # callers that wait for room
        self._letting_in = False
        self._flushing = False
        self._alone = True  # the last flush was of a single call
        self._flusher: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """How many calls wait for a flush to begin."""
        return len(self._waiting)

    @property
    def flushing(self) -> bool:
        """Whether a flush is under way, or about to begin."""
        return self._flushing

    @property
    def crowded(self) -> bool:
        """Whether so much waits for a flush that nothing should be added for now."""
        return self._bytes >= MOST_BYTES or len(self._waiting) >= MOST_CALLS

    async def room(self) -> None:
        """Wait until the buffer isn't crowded, in the order of the calls.

        Called before an item is made, so that a waiting caller takes no memory of the buffer's. The item may
        then be added without another await.
        """
        asked = False
        while self.crowded or (self._outside and not asked):
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._outside[waiting] = None
            if asked:  # let in, but the items before were larger than the flushed ones
                self._outside.move_to_end(waiting, last=False)
            asked = True
            self._let_in_soon()
            try:
                await waiting
            finally:
                self._outside.pop(waiting, None)

    async def call(self, item: Item) -> Result:
        """Have ``item`` flushed and return its result.

        If the last flush was of a single call, the caller flushes by itself, which saves an asyncio task and
        two turns of the loop. If it is cancelled meanwhile, its flush is cancelled too.
        """
        if self._flushing or not self._alone:
            return await self.submit(item)
        self._flushing = True
        try:
            (result,) = await self._flush([item])
        finally:
            self._flushing = False
            if self._waiting:
                self._start()
        return result

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Have ``item`` flushed; the future returned has its result."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.add(item, future)
        return future

    def add(self, item: Item, caller: Caller[Result]) -> None:
        """Have ``item`` flushed for a ``caller`` that isn't a future, which saves 3 µs.

        Neither of its ``set_`` methods may raise.
        """
        size = self._size(item)
        self._waiting.append((item, caller, size))
        self._bytes += size
        if not self._flushing:
            self._start()

    def _start(self) -> None:
        self._flushing = True
        # An empty context, because the flush belongs to no caller, not even to the first.
        flusher = asyncio.get_running_loop().create_task(
            self._run(), context=contextvars.Context(), name="aiotasks batcher"
        )
        if not flusher.done():  # an eager task may be, and doesn't flush then
            self._flusher = flusher
            flusher.add_done_callback(self._ended)

    def _ended(self, flusher: asyncio.Task[None]) -> None:
        """Do what a flusher couldn't that a closing loop cancelled before its first step."""
        if flusher is self._flusher and self._flushing:
            self._give_up([], asyncio.CancelledError())
            self._flushing = False

    async def _run(self) -> None:
        batch: list[tuple[Item, Caller[Result]]] = []
        try:
            while batch := self._take():
                self._alone = len(batch) == 1
                await self._settle(batch)
        except BaseException as error:
            self._give_up(batch, error)
            raise
        finally:
            # Nothing is awaited between finding the buffer empty and this, or a call that arrived in between
            # would wait forever.
            self._flushing = False
            self._flusher = None  # _ended() is called later, when another flusher may be at work

    def _give_up(self, batch: list[tuple[Item, Caller[Result]]], error: BaseException) -> None:
        """Answer all callers with an error, because the loop is closing or out of memory."""
        callers = [*(caller for _, caller in batch), *(caller for _, caller, _ in self._waiting)]
        self._waiting.clear()  # before the answers, at which a caller may add other calls
        self._bytes = 0
        for caller in callers:
            if not caller.done():
                caller.set_exception(utils.InterfaceError(f"interrupted by {error!r}"))
        if self._outside:
            self._let_in_soon()

    def _take(self) -> list[tuple[Item, Caller[Result]]]:
        batch: list[tuple[Item, Caller[Result]]] = []
        room = FLUSH_SIZE
        while self._waiting and len(batch) < self._limit:
            item, caller, size = self._waiting[0]
            if not caller.done():
                if size > room and batch:
                    break
                room -= size
                batch.append((item, caller))
            self._waiting.popleft()
            self._bytes -= size
        if self._outside:
            self._let_in_soon()
        return batch

    def _let_in_soon(self) -> None:
        if not self._letting_in:
            self._letting_in = True
            asyncio.get_running_loop().call_soon(self._let_in)

    def _let_in(self) -> None:
        """Let some of the callers in that wait for room.

        They may add nothing after all, so it checks again in the next turn of the loop; while the buffer is
        crowded, the next flush lets callers in.
        """
        self._letting_in = False
        if self.crowded:
            return
        for _ in range(min(self._limit, len(self._outside))):
            waiting, _ = self._outside.popitem(last=False)
            if not waiting.done():
                waiting.set_result(None)
        if self._outside:
            self._let_in_soon()

    async def _settle(self, batch: list[tuple[Item, Caller[Result]]]) -> None:
        try:
            results = await self._flush([item for item, _ in batch])
        except Exception as error:  # it is the callers'  # noqa: BLE001
            if len(batch) > 1 and not is_transient(error):
                middle = len(batch) // 2
                await self._settle(batch[:middle])
                await self._settle(batch[middle:])
                return
            for _, caller in batch:
                if not caller.done():
                    caller.set_exception(error if len(batch) == 1 else own_error(error))
            return
        for (_, caller), result in zip(batch, results, strict=True):
            if not caller.done():
                caller.set_result(result)


def own_error[Error: BaseException](error: Error) -> Error | utils.DatabaseError:
    """A copy of ``error``, because callers that raise one object would share its traceback."""
    twin: Error | utils.DatabaseError
    try:
        twin = copy.copy(error)
    except Exception:  # an exception class that can't be copied  # noqa: BLE001
        twin = utils.DatabaseError(str(error))
    twin.__cause__ = error.__cause__
    return twin
