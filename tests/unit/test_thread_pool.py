"""ThreadPool: how many threads there are beside those that don't give their calls back."""

import threading
from collections.abc import Callable

from aiotasks.worker.thread_pool import ThreadPool
from tests.worker.harness import wait_until


class Calls:
    """Calls that wait until they are let go of."""

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self.running: dict[str, threading.Event] = {}
        self.threads: set[int] = set()

    def put(self, name: str) -> None:
        end = threading.Event()

        def call(after: Callable[[], None]) -> None:
            self.threads.add(threading.get_ident())
            self.running[name] = end
            end.wait(60)
            after()
            del self.running[name]

        self._pool.put(call, may_wait=False)
        wait_until(lambda: name in self.running)

    def end(self, name: str) -> None:
        self.running[name].set()
        wait_until(lambda: name not in self.running)


def make_pool(limit: int, spare: int) -> tuple[ThreadPool, Calls]:
    pool = ThreadPool("test", "tests", limit, spare=spare, connects=False)
    return pool, Calls(pool)


def test_a_stuck_thread_has_another_in_its_place() -> None:
    pool, calls = make_pool(2, spare=2)
    calls.put("stuck")
    pool.widen()
    calls.put("a")
    calls.put("b")
    assert (pool.capacity(), len(pool.threads)) == (2, 3)
    calls.end("a")
    calls.end("stuck")
    pool.narrow()
    wait_until(lambda: len(pool.threads) == 2)
    calls.put("c")
    assert (pool.capacity(), len(pool.threads)) == (2, 2)
    calls.end("b")
    calls.end("c")
    pool.close()


def test_without_a_spare_thread_fewer_calls_run() -> None:
    pool, calls = make_pool(2, spare=1)
    for name in "abc":
        calls.put(name)
        pool.widen()
    assert (pool.stuck, pool.usable, pool.capacity(), len(pool.threads)) == (3, 0, 0, 3)
    calls.end("a")
    pool.narrow()
    assert (pool.capacity(), len(pool.threads)) == (1, 3)
    calls.put("d")
    for name in "bcd":
        calls.end(name)
    pool.narrow()
    pool.narrow()
    wait_until(lambda: len(pool.threads) == 2)
    assert (pool.stuck, pool.capacity()) == (0, 2)
    pool.close()


def test_threads_that_come_and_go_leave_nothing_behind() -> None:
    """A worker may have many stuck threads in its life, one after another."""
    pool, calls = make_pool(1, spare=1)
    for number in range(50):
        calls.put("stuck")
        pool.widen()
        calls.put(f"other {number}")
        calls.end("stuck")
        calls.end(f"other {number}")
        pool.narrow()
        wait_until(lambda: len(pool.threads) == 1)
    wait_until(lambda: len(pool._ended) == 1)
    assert len(calls.threads) <= 51
    pool.close()
