"""A child that a task forks shares neither event loop nor connections with the worker's process.

A fork shares the open files behind the descriptors. Through an epoll instance the child would deregister the
parent's connections; through a connection it would end the parent's session, and keep it open after the
parent's death, with its locks. (A program started by exec, a subprocess or multiprocessing's spawn inherits
none.)
"""

import asyncio
import os
import select
import signal
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from django.db import connections

from ...compat import connection_pools, forget_session
from ...db.connect import connect_arguments

__all__ = ["unshared"]

_current: tuple[asyncio.AbstractEventLoop, frozenset[int]] | None = None

# Objects that the child must keep: if they were freed, a driver would end the parent's session.
_kept: list[object] = []


@contextmanager
def unshared(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """During the block, children that are forked share neither event loops nor PostgreSQL sessions."""
    global _current
    _current = loop, frozenset(_ports())
    try:
        yield
    finally:
        _current = None


def _ports() -> Iterator[int]:
    """The ports of all PostgreSQL servers of DATABASES."""
    for alias in connections:
        if connections[alias].vendor != "postgresql":
            continue
        try:
            servers = connect_arguments(alias).servers
        except Exception:  # without a way to connect there is no session; a subclassed engine raises anything  # noqa: BLE001
            continue
        for server in servers:
            port = server["port"]
            yield from port if isinstance(port, list) else [port]


def _unshare() -> None:
    """In the child."""
    global _current
    if _current is None:
        return
    loop, ports = _current
    _current = None
    with suppress(OSError):  # no /proc
        _replace_descriptors(ports, map(int, os.listdir("/proc/self/fd")))
    _kept.extend(map(forget_session, connections.all(initialized_only=True)))
    for connection in connections.all():
        # The threads that open a pool's connections are the parent's, so the child would wait for one until
        # the pool's timeout. The next query makes another pool.
        pools = connection_pools(connection)
        _kept.extend(pools.values())
        pools.clear()
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # in place of libuv's, which Python doesn't see
    with suppress(RuntimeError):
        loop.call_soon(os._exit, 1)  # a coroutine that goes on in the child ends at its next await


def _replace_descriptors(ports: frozenset[int], filenos: Iterable[int]) -> None:
    """Replace them under the same numbers: objects still hold these, and will close them."""
    null = os.open(os.devnull, os.O_RDWR)
    for fileno in filenos:
        with suppress(OSError):  # the descriptor of the listing itself
            target = os.readlink(f"/proc/self/fd/{fileno}")
            if target == "anon_inode:[eventpoll]":
                with select.epoll() as epoll:
                    os.dup2(epoll.fileno(), fileno, inheritable=False)
            elif target.startswith("socket:") and _port_of_peer(fileno) in ports:
                os.dup2(null, fileno, inheritable=False)
    os.close(null)


def _port_of_peer(fileno: int) -> int | None:
    """The port of the server that a socket leads to, also from the name of a Unix socket."""
    connection = socket.socket(fileno=os.dup(fileno))
    try:
        peer = connection.getpeername()
    except OSError:  # it isn't connected
        return None
    finally:
        connection.close()
    if isinstance(peer, tuple):
        return int(peer[1])
    name, _, port = os.fspath(peer).rpartition(".") if isinstance(peer, str) else ("", "", "")
    return int(port) if name.endswith(".s.PGSQL") and port.isdigit() else None


os.register_at_fork(after_in_child=_unshare)
