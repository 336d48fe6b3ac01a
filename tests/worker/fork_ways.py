"""Ways in which a task can start other processes; each returns what has become of them."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection

# It says what it has inherited: how many descriptors, blocked signals, and signals that aren't ignored.
LIST = """
import os, signal
handlers = [signal.getsignal(getattr(signal, f"SIG{name}")) for name in ("TERM", "USR1", "USR2", "ALRM")]
fds = len(os.listdir("/proc/self/fd")) - 1
print(fds, len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), handlers.count(signal.SIG_DFL))
"""


def _terminated(context: BaseContext) -> int | None:
    child: BaseProcess = context.Process(  # type: ignore[attr-defined]  # each kind of context has its own
        target=time.sleep, args=[600]
    )
    child.start()
    child.terminate()
    end = time.monotonic() + 20
    # join() may return without the code: another thread that starts a Process reaps this one, too.
    while child.exitcode is None and time.monotonic() < end:
        child.join(1)
    if child.exitcode is None:
        child.kill()
    return child.exitcode


def process() -> Any:
    return _terminated(multiprocessing.get_context("fork"))


def forkserver() -> Any:
    return _terminated(multiprocessing.get_context("forkserver"))


def pool() -> Any:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map_async(abs, [-1, -2]).get(20)


def executor() -> Any:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as executor:
        return list(executor.map(abs, [-1, -2], timeout=20))


def popen() -> Any:
    with subprocess.Popen(["sleep", "600"]) as child:
        child.terminate()
        code = child.wait(20)
    listed = subprocess.check_output([sys.executable, "-S", "-c", LIST], timeout=20)
    return [code, *map(int, listed.split())]


def _fork(child: Any) -> int:
    """The exit code of a child that does ``child``; it may return into its caller's caller."""
    pid = os.fork()
    if not pid:
        return int(child())
    end = time.monotonic() + 20
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise TimeoutError("the child lives on")


def exits() -> Any:
    return _fork(lambda: os._exit(7))


def sys_exits() -> Any:
    return _fork(lambda: sys.exit(8))


def raises() -> Any:
    return _fork(lambda: int("no number"))


def returns() -> Any:
    return _fork(lambda: 0)


async def awaits() -> Any:
    """A child that goes on with its coroutine."""
    pid = os.fork()
    if not pid:
        await asyncio.sleep(0)
        os._exit(99)
    code = await asyncio.to_thread(lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return code in (0, 1)  # 0: a callback of the worker's that was due before found itself in the child


async def returns_in_executor() -> Any:
    return await asyncio.to_thread(returns)


async def returns_in_orm_thread() -> Any:
    return await sync_to_async(returns)()


def orm() -> Any:
    """Whether the child has a session of its own, and the parent keeps the one that it had."""
    mine = _session()
    code = _fork(lambda: os._exit(int(_session() == mine)))
    return [code, _session() == mine]


def _session() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def stays() -> Any:
    """A child that outlives its worker."""
    pid = os.fork()
    if not pid:
        time.sleep(600)
        os._exit(0)
    return pid


def writes(path: str) -> Any:
    """Leaves a line of its own, also in a process that has no connection any more."""
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
