"""Children that a task forks: whether this process is one, and its end.

A child of ``os.fork()`` that returns from its task comes back into the worker's code, which goes on in the
parent as well: it would write outcomes a second time, or wait forever for calls that never come.
"""

import os
import socket
import sys
import traceback
from contextlib import suppress
from typing import NoReturn
from weakref import WeakSet

__all__ = ["end", "generation", "keep_from_children"]

# The number of forks between this process and the one that imported this module. If it has changed since a
# task's code began, this process is a child that the task has forked.
generation = 0

_kept: WeakSet[socket.socket] = WeakSet()


def keep_from_children(own: socket.socket) -> None:
    """Have children close ``own``: they would keep a port taken, or a connection open, after this process."""
    _kept.add(own)


def end(error: BaseException | None = None) -> NoReturn:
    """End a child whose code has come to its end, or raised ``error``.

    The exit code is SystemExit's, or 1 for another error.
    """
    code: object = 0
    if isinstance(error, SystemExit):
        code = error.code if error.code is not None else 0
    elif error is not None:
        code = 1
    with suppress(Exception):  # a stream may be closed, or anything else
        if not isinstance(code, int):
            sys.stderr.write(f"{code}\n")
        elif error is not None and not isinstance(error, SystemExit):
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code & 0xFF if isinstance(code, int) else 1)


def _forked() -> None:
    global generation
    generation += 1
    for own in list(_kept):
        own.close()


os.register_at_fork(after_in_child=_forked)
