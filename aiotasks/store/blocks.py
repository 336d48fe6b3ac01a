"""Blocks: the common base of ``aiotasks.transaction()`` and ``aiotasks.atomic()``.

A context variable holds the innermost block around a caller. asyncio tasks inherit it, so a block
knows whether it has ended. Inside a block asgiref sends thread-sensitive calls (the async ORM's,
``sync_to_async``'s) to the block, which decides where they run.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from contextvars import Context, ContextVar, Token
from functools import partial
from typing import TYPE_CHECKING, Any

from ..compat import (
    enter_thread_sensitive,
    executor_in_context,
    set_waiting_executor,
    sync_code_waits,
    thread_sensitive_context,
    waiting_executor,
)
from ..exceptions import TransactionClosed

if TYPE_CHECKING:
    from asgiref.sync import ThreadSensitiveContext

__all__ = [
    "Block",
    "belongs_to_django",
    "block_around",
    "close_blocks",
    "closed",
    "innermost",
    "innermost_of",
    "leave_blocks",
]


class Block(ABC):
    """One ``async with`` block. ``around`` is the one that it is in, perhaps on another database."""

    # The name for people, as in "aiotasks.transaction()".
    name: str
    # Whether enqueues inside go over Django's connection, in the thread that thread-sensitive calls run in.
    is_django: bool

    def __init__(self, using: str) -> None:
        self.using = using
        self.around = _current.get()
        self.open = True
        self._waiting = waiting_executor()
        self._outside = thread_sensitive_context.get(None)
        self._tokens: tuple[Token[Block | None], Token[ThreadSensitiveContext | None]] | None = None

    def enter(self) -> None:
        """Make this the block around the caller."""
        self._tokens = (_current.set(self), thread_sensitive_context.set(_context))
        set_waiting_executor(None)  # or asgiref would prefer the thread that waits

    def leave(self) -> None:
        """Undo ``enter()``, if the context is still the same; a test's fixture may be left in another one."""
        self.open = False
        if self._tokens is None:
            return
        block, context = self._tokens
        self._tokens = None
        with suppress(ValueError):
            thread_sensitive_context.reset(context)
            _current.reset(block)
            set_waiting_executor(self._waiting)

    def close(self) -> None:
        """Have all later calls raise TransactionClosed, and the end of the block, which rolls back."""
        self.open = False

    @abstractmethod
    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Run a thread-sensitive call of code inside. Raises TransactionClosed if the block has ended."""

    def submit_outside(self, call: Callable[[], Any]) -> Future[Any]:
        """Run ``call`` where it would run without this block."""
        return self._executor_outside().submit(call)

    def _executor_outside(self) -> Executor:
        if self._waiting is not None:
            return self._waiting
        if self._outside is _context:
            return _ToBlock(self.around)
        return executor_in_context(self._outside)


class _ToBlock(Executor):
    """Sends calls to a block; without one, to the block around the caller."""

    def __init__(self, block: Block | None = None) -> None:
        self._block = block

    def submit[Result](self, call: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        block = self._block or _current.get()
        if block is None:
            raise RuntimeError("This context has been copied without the aiotasks block that it belongs to.")
        return block.submit(partial(call, *args, **kwargs))


_current: ContextVar[Block | None] = ContextVar("aiotasks_block", default=None)

# One for all blocks, entered in a context of its own, and never left. So asgiref keeps its executor, and
# calls of an asyncio task that outlives a block get here too.
_context = Context().run(enter_thread_sensitive, _ToBlock())


def innermost(using: str) -> Block | None:
    """The innermost block around the caller on ``DATABASES[using]``, ended or not."""
    found = _current.get()
    while found is not None and found.using != using:
        found = found.around
    return found


def innermost_of[Kind: Block](kind: type[Kind]) -> Kind | None:
    """The innermost block of a kind around the caller, on any database, ended or not."""
    found = _current.get()
    while found is not None and not isinstance(found, kind):
        found = found.around
    return found


def block_around(using: str) -> Block | None:
    """The block around the caller on ``DATABASES[using]``.

    Raises TransactionClosed if that block has ended, because the caller is an asyncio task that outlived it,
    and its writes would belong to no transaction, or to another's.
    """
    found = innermost(using)
    if found is not None and not found.open:
        raise closed(found)
    return found


def belongs_to_django(using: str) -> bool:
    """Whether the caller's writes to ``DATABASES[using]`` belong on Django's connection.

    That is the connection of its thread-sensitive calls. Raises TransactionClosed as ``block_around()`` does.
    """
    if sync_code_waits():
        return True
    block = block_around(using)
    return block is not None and block.is_django


def close_blocks(context: Context) -> None:
    """Close the blocks that code in ``context`` is in. Called on its loop, while none of it runs."""
    block = context.get(_current)
    while block is not None:
        block.close()
        block = block.around


def leave_blocks() -> None:
    """Be outside of all blocks, in a context that has got its variables from code inside of some."""
    if (block := _current.get()) is None:
        return
    while block.around is not None:
        block = block.around
    _current.set(None)
    set_waiting_executor(block._waiting)
    if thread_sensitive_context.get(None) is _context:
        thread_sensitive_context.set(block._outside)


def closed(block: Block) -> TransactionClosed:
    return TransactionClosed(
        f"This code was started inside an {block.name} block that has ended since. "
        "Await it before the block ends, or start it outside (with an empty contextvars.Context)."
    )
